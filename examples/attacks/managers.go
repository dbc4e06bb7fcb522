package main

// The managers that are compared: go-libp2p's own, ours with its defaults, ours with the
// option that is meant for an attack, and ours with WithRoom, too. All get the same limits
// and the same allowlist.

import (
	"encoding/json"
	"fmt"

	"github.com/libp2p/go-libp2p/core/network"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/weir-p2p/rcmgr"
)

// columns are the managers, in the order of the tables.
var columns = []struct {
	name string // followed by the names of options in the columns that have any
	make func(plan) (network.ResourceManager, error)
}{
	{"upstream", newUpstream},
	{"ours", newOurs},
	{"ours, ", newOursWithOption},
	{"ours, ", newOursWithRoom},
}

// The columns with options.
const (
	withOption = 2
	withRoom   = 3
)

// column returns the name of a column in the table of an attack.
func (a *attack) column(i int) string {
	switch i {
	case withOption:
		return columns[i].name + a.option
	case withRoom:
		return columns[i].name + a.option + " and WithRoom"
	}
	return columns[i].name
}

func newOurs(p plan) (network.ResourceManager, error) { return newOursWith(p) }

func newOursWithOption(p plan) (network.ResourceManager, error) { return newOursWithOptions(p) }

func newOursWithRoom(p plan) (network.ResourceManager, error) {
	return newOursWithOptions(p, rcmgr.WithRoom(rcmgr.RoomConfig{}))
}

// newOursWithOptions returns ours with what is meant for the attack, and other options.
func newOursWithOptions(p plan, more ...rcmgr.Option) (network.ResourceManager, error) {
	if p.option != nil {
		more = append(more, p.option)
	}
	p.limits.PeerDefault.Rates = p.rates
	return newOursWith(p, more...)
}

func newOursWith(p plan, option ...rcmgr.Option) (network.ResourceManager, error) {
	return rcmgr.New(rcmgr.NewFixedLimiter(p.limits.Build(rcmgr.InfiniteLimits)),
		append(option, rcmgr.WithAllowlistedMultiaddrs(p.allowlist))...)
}

func newUpstream(p plan) (network.ResourceManager, error) {
	text, err := json.Marshal(p.limits)
	if err != nil {
		return nil, err
	}
	var limits upstream.PartialLimitConfig
	if err := json.Unmarshal(text, &limits); err != nil {
		return nil, fmt.Errorf("limits, as go-libp2p's manager reads them: %w", err)
	}
	return upstream.NewResourceManager(upstream.NewFixedLimiter(limits.Build(upstream.InfiniteLimits)),
		upstream.WithAllowlistedMultiaddrs(p.allowlist))
}

// held lists the scopes of a manager that hold anything.
func held(m network.ResourceManager) (names []string, err error) {
	if ours, ok := m.(*rcmgr.Manager); ok {
		for _, s := range ours.Snapshot().Scopes {
			if s.Use != (network.ScopeStat{}) {
				names = append(names, fmt.Sprintf("%s %+v", s.Name, s.Use))
			}
		}
		return names, nil
	}
	for name, view := range map[string]func(func(network.ResourceScope) error) error{
		"system": m.ViewSystem, "transient": m.ViewTransient,
	} {
		if err := view(func(s network.ResourceScope) error {
			if use := s.Stat(); use != (network.ScopeStat{}) {
				names = append(names, fmt.Sprintf("%s %+v", name, use))
			}
			return nil
		}); err != nil {
			return nil, err
		}
	}
	return names, nil
}
