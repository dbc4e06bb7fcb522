package rcmgrshadow

// The purposeful differences, by the names that they have in the first column of
// DIFFERENCES.md, and which of them explains what.

import (
	"math"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"

	"github.com/weir-p2p/rcmgr"
)

const (
	entryPriorities   = "priorities of memory"
	entryOutStreams   = "transient's outbound streams"
	entryInStreams    = "inbound streams of newcomers"
	entryOverflow     = "sums that overflow"
	entryNegative     = "negative sizes"
	entryTooMuch      = "too much released"
	entrySetAfterDone = "SetPeer, SetProtocol, SetService after Done"
	entryAfterDone    = "Limit, ProtocolScope and ServiceScope after Done"
	entryFailedMove   = "an allowlisted connection that cannot be moved"
	entryZeroMove     = "what a moved scope does not hold"
	entrySpanLimit    = "limit of a span"
	entryBadLimit     = "SetLimit with nil or below zero"
	entryEmptyName    = "empty names of protocols and services"
	entryHeldMemory   = "collection of scopes that hold memory"
	entryKept         = "scopes kept from a View"
	entryOutbound     = "outbound connections"
	entryRelayed      = "relayed endpoints"
	entryRelayedFD    = "descriptors of relayed connections"
	entryMapped       = "IPv4 in IPv6"
	entryNoGates      = "InfiniteLimits at the gates"
	entryOrder        = "order of gates and scopes"
	entryTokens       = "tokens of refused connections"
	entryVerifyLoad   = "VerifySourceAddress under load"
	entryAllowedGates = "allowlisted addresses at the gates"
	entryStreams      = "streams of an allowlisted peer"
	entryBarePeer     = "a bare peer ID"
	entryOptions      = "options that only rcmgr has"
)

// entries are all entries that can explain a difference.
var entries = []string{entryPriorities, entryOutStreams, entryInStreams, entryOverflow, entryNegative, entryTooMuch,

	entrySetAfterDone, entryAfterDone, entryFailedMove, entryZeroMove, entrySpanLimit, entryBadLimit, entryEmptyName,
	entryHeldMemory, entryKept, entryOutbound, entryRelayed, entryRelayedFD, entryMapped, entryNoGates, entryOrder, entryTokens,
	entryVerifyLoad, entryAllowedGates, entryStreams, entryBarePeer, entryOptions}

// explain returns the entry that explains two different answers of scopes, or "".
func (m *Manager) explain(c *call, s *scope, theirs, ours answer) string {
	switch {
	case s.done && c.moves:
		return entrySetAfterDone
	case c.named && c.to == "" && ours.class == senseless:
		return entryEmptyName
	case s.id.shared() && theirs.class == scopeClosed:
		return entryKept
	case s.owner != nil && m.followsOther(s):
		return entrySpanLimit
	case c.moves && theirs.class == limitedByScope && holdsNone(s.lead.Stat(), theirs.what):
		return entryZeroMove
	case s.allowlisted && c.name == "OpenStream":
		return entryStreams
	case c.name == "OpenConnection" && m.theirList.Allowed(c.endpoint) != m.ours.GetAllowlist().Allowed(c.endpoint):
		return placeOf(c.endpoint).entry()
	}
	if o := ours.ours; o != nil {
		switch {
		case o.Cause() == rcmgr.CauseCrowding && o.Direction() == network.DirOutbound, o.Cause() == rcmgr.CauseCrowding && c.dir == network.DirOutbound:
			return entryOutStreams
		case o.Cause() == rcmgr.CauseCrowding:
			return entryInStreams
		case o.Cause() == rcmgr.CauseFairShare, o.Cause() == rcmgr.CauseMemoryPressure, c.opens && o.Resource() == rcmgr.ResourceMemory:
			return entryOptions
		case c.name == "OpenStream" && (o.Kind() == rcmgr.KindAllowlistedSystem || o.Kind() == rcmgr.KindAllowlistedTransient):
			return entryStreams
		case c.reserves && theirs.class == admitted && o.Current() > math.MaxInt64-max(0, o.Attempted()):
			return entryOverflow
		case c.reserves && theirs.class == admitted && o.Limit() == math.MaxInt64 && o.Priority() < math.MaxUint8:
			return entryPriorities // of an unlimited limit, go-libp2p's manager admits everything
		}
	}
	switch {
	case theirs.class != limitedByScope:
	case theirs.what == "file descriptor" && placeOf(c.endpoint).relayed:
		return entryRelayedFD
	case c.reserves && theirs.what == "memory" && c.prio < math.MaxUint8 && m.hasOwnRule():
		return entryPriorities
	case ours.class == admitted && len(m.ours.Observed()) > 0:
		return entryOptions
	}
	if m.badLimit {
		return entryBadLimit
	}
	return m.lost
}

// followsOther reports whether the limit of a span, or of a span around it, is not the same in
// both managers.
func (m *Manager) followsOther(s *scope) bool {
	for x := s; x.owner != nil; x = x.owner {
		if x.owner.done {
			return true
		}
		if x.beside == nil {
			continue
		}
		var beside rcmgr.Limit
		lead := limitOf(x.lead)
		m.guarded(func() { beside = limitOf(x.beside) })
		if _, _, _, same := sameLimits(lead, beside); !same {
			return true
		}
	}
	return false
}

// holdsNone reports whether a scope that is moved holds nothing of a resource.
func holdsNone(stat network.ScopeStat, what string) bool { return !touches(stat, what) }

// notCompared is the reason why a difference does not count.
type notCompared string

const (
	followsEarlier notCompared = "follows"
	timing         notCompared = "timing"
)

// explainStat returns the entry that explains why a connection, stream or span holds more in
// the lead by d, or "".
func (m *Manager) explainStat(s *scope, d network.ScopeStat) string {
	switch onlyFD := (network.ScopeStat{NumFD: d.NumFD}); {
	case d == onlyFD && placeOf(s.endpoint).relayed:
		return entryRelayedFD
	case d == (network.ScopeStat{Memory: d.Memory}) && !s.id.shared() && s.owner == nil && m.costs:
		return entryOptions
	}
	return m.lost
}

// explainShared returns the entry that explains why shared scopes hold other amounts than is
// known, or "". theirs is what go-libp2p's manager holds. What that has forgotten with a scope
// that it collected stays forgotten.
func (m *Manager) explainShared(theirs *upstream.ResourceManagerStat) string {
	for id, r := range m.direct {
		if *r == (reserved{}) {
			continue
		}
		there := true
		switch id.kind {
		case kindPeer:
			_, there = theirs.Peers[peer.ID(id.name)]
		case kindProtocol:
			_, there = theirs.Protocols[protocol.ID(id.name)]
		}
		if !there {
			m.lost = entryHeldMemory
		}
	}
	return m.lost
}

// admissionRule is what is known of ours' rule for priorities.
type admissionRule uint8

const (
	ruleUnknown admissionRule = iota
	ruleOwn                   // another one than go-libp2p's
	ruleTheirs
)

// hasOwnRule reports whether ours admits memory by another rule than go-libp2p's. It asks ours
// what it would say to a byte at two priorities, and compares the thresholds. Where all memory
// is blocked, the rule is not known, and taken to be another one, as it is by default.
func (m *Manager) hasOwnRule() bool {
	for _, prio := range []uint8{0, 128} {
		if m.rule != ruleUnknown {
			break
		}
		answer, err := m.ours.Explain(rcmgr.ExplainRequest{Kind: rcmgr.KindTransient, Memory: 1, Priority: prio})
		if err != nil {
			continue
		}
		for _, check := range answer.Checks {
			if check.Name != "Memory" {
				continue
			}
			if check.Threshold != theirThreshold(check.Limit, prio) {
				m.rule = ruleOwn
				break
			}
			if check.Limit > 1 { // lower ones have the same threshold by every rule
				m.rule = ruleTheirs
			}
		}
	}
	return m.rule != ruleTheirs
}

// theirThreshold returns how much of a limit on memory a priority may fill in go-libp2p's manager.
func theirThreshold(limit int64, prio uint8) int64 {
	if limit == math.MaxInt64 {
		return limit
	}
	weight := 1 + int64(prio)
	return limit>>8*weight + (limit&255)*weight>>8
}
