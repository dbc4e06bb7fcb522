package main

// go-libp2p v0.51.0 sometimes forgets an inbound connection that its peer closes right
// after the handshake (Accept of the upgrader's listener), with any manager, and never
// closes its scope. A ledger between a host and its manager has every scope that is open.
// With it, scopes that the host has forgotten can be distinguished from scopes that the manager
// should not hold.

import (
	"maps"
	"sync"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/multiformats/go-multiaddr"
	"github.com/weir-p2p/rcmgr"
)

type ledger struct {
	*rcmgr.Manager
	mu   sync.Mutex
	open map[*entry]network.Direction
}

// entry is the scope of an open connection.
type entry struct {
	network.ConnManagementScope
	in *ledger
}

func newLedger(m *rcmgr.Manager) *ledger {
	return &ledger{Manager: m, open: make(map[*entry]network.Direction)}
}

// Unwrap returns the manager, so that its allowlist is found.
func (l *ledger) Unwrap() network.ResourceManager { return l.Manager }

func (l *ledger) OpenConnection(dir network.Direction, usefd bool, endpoint multiaddr.Multiaddr) (network.ConnManagementScope, error) {
	s, err := l.Manager.OpenConnection(dir, usefd, endpoint)
	if err != nil {
		return nil, err
	}
	e := &entry{s, l}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[e] = dir
	return e, nil
}

func (e *entry) Done() {
	e.ConnManagementScope.Done()
	e.in.mu.Lock()
	defer e.in.mu.Unlock()
	delete(e.in.open, e)
}

// astray returns the scopes that belong to no connection of the host. In a pause these
// are the scopes that it has forgotten.
func (l *ledger) astray(h host.Host) map[*entry]network.Direction {
	l.mu.Lock()
	list := maps.Clone(l.open)
	l.mu.Unlock()
	for _, c := range h.Network().Conns() {
		if e, ok := c.Scope().(*entry); ok {
			delete(list, e)
		}
	}
	return list
}

// finishForgotten closes the scopes of connections that the host has forgotten, and
// returns how many there were. A host should forget no outbound connection.
func (l *ledger) finishForgotten(h host.Host) (inbound, outbound int) {
	for e, dir := range l.astray(h) {
		e.Done()
		if dir == network.DirInbound {
			inbound++
		} else {
			outbound++
		}
	}
	return inbound, outbound
}
