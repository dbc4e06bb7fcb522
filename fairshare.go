package rcmgr

// Fair share: while more than half of a scope that all peers share is in use, no single
// peer and no single group of addresses gets all that is left. A peer may hold a quarter of a
// limit. Because identities cost nothing, all peers of a subnet together may hold as much as is
// still free (the dynamic thresholds of Choudhury and Hahne, made for queues that share
// the memory of a switch): one subnet gets half of the limit, two get a third each, and
// peers from anywhere else find room. Subnets cost little, so networks and owners, which the
// program names, have shares, too: twice as much as is free.
//
// These are bounds on what the scope may hold after a request, and never below half of its
// limit. So they need nothing beyond what limits need (I2): credit below half is spent as
// usual, and above half every request is decided on the exact sum, with a lower bound for
// some. The use of groups, of the standard scopes alone, is counted where their peers'
// stripes change it, in counters that all stripes share. A request sees the counters as
// they are at that moment: n requests at the same time may exceed the share by n, but
// never the limit.

import (
	"net/netip"

	"github.com/weir-p2p/rcmgr/internal/groups"
	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/subnets"
)

// fairShare has the groups of one manager. A nil *fairShare has none.
type fairShare struct {
	scopes kindSet
	*groups.Table
}

func newFairShare(scopes kindSet, owner func(netip.Addr) string) *fairShare {
	if scopes == 0 {
		return nil
	}
	return &fairShare{scopes, groups.New(owner)}
}

// on reports whether a scope has shares.
func (f *fairShare) on(k Kind) bool { return f != nil && f.scopes.has(k) }

// enter returns where a connection that is to be opened comes from or goes to, or nil if that is
// in no group. The caller must leave it again. If the program ends the goroutine when it is asked
// for an owner, what the gates gave is given back; pass may be nil.
func (f *fairShare) enter(far endpoint, d dim, pass *subnets.Pass) *groups.Seat {
	addr := far.addr
	if far.relayed {
		addr = far.via
	}
	if f == nil || !addr.IsValid() || addr == localhost4 || addr == localhost6 {
		return nil
	}
	entered := false
	defer func() {
		if !entered && pass != nil {
			pass.Undo()
		}
	}()
	s := f.Enter(addr, far.relayed, d == dimConnsOut)
	entered = true
	return s
}

// leave drops a reference that enter or join took. It does nothing for nil.
func (f *fairShare) leave(n *groups.Seat) {
	if n != nil {
		f.Leave(n)
	}
}

// groupKinds are the scopes in which groups are counted.
var groupKinds = [...]groups.Scope{KindSystem: groups.System, KindTransient: groups.Transient}

// countedAs returns as what a resource is counted in groups.
func countedAs(d dim) (w groups.What, ok bool) {
	switch d {
	case dimStreamsOut:
		return groups.StreamsOut, true
	case dimConnsOut:
		return groups.ConnsOut, true
	}
	switch resourceOf[d] {
	case ResourceStream:
		return groups.StreamsIn, true
	case ResourceConnection:
		return groups.ConnsIn, true
	case ResourceFD:
		return groups.FDs, true
	}
	return 0, false
}

// claimOf returns how much of a limit has to be left free if more is given to a subnet, and the
// group that holds so much.
func claimOf(n *groups.Seat, k Kind, d dim) (int64, *groups.Group) {
	w, ok := countedAs(d)
	if !ok {
		return 0, nil
	}
	return n.Claim(groupKinds[k], w)
}

// nameOfGroup returns the name of a group in refusals.
func nameOfGroup(g *groups.Group) scopeName {
	if p := g.Prefix(); p.IsValid() {
		return subnetName(KindSubnet, ip.KeyOf(p.Addr()), p.Bits())
	}
	return scopeName{kind: KindSubnet, text: g.Owner()}
}
