package suggest

// The gates: networks that need more connections than the limit in force admits with the margin.

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/internal/text"
)

// seenGates is what snapshots saw of the gates.
type seenGates struct {
	limits   rcmgr.GateLimits // in force, of the latest snapshot that has them
	taken    time.Time
	networks map[netip.Prefix]*seenNetwork
	managers map[time.Time]*gateCounts
	rates    uint64 // connections that the connect rate has refused, or would have
}

// gateCounts is what the gates of one manager have refused, in the latest snapshot.
type gateCounts struct{ refused, would, rate int64 }

// seenNetwork is what was seen of a subnet or network in the snapshots that list it.
type seenNetwork struct {
	looks          []look
	peak           int64
	at             time.Time
	in             string
	limit          int64 // the lowest
	refused, would uint64
}

// add adds what a snapshot has of the gates.
func (g *seenGates) add(name string, s *rcmgr.Snapshot) {
	if g.networks == nil {
		g.networks, g.managers = make(map[netip.Prefix]*seenNetwork), make(map[time.Time]*gateCounts)
	}
	if s.Taken.After(g.taken) {
		g.limits, g.taken = s.Gates.Limits, s.Taken
	}
	before := g.managers[s.Started]
	if before == nil {
		before = new(gateCounts)
		g.managers[s.Started] = before
	}
	conns := func(by map[rcmgr.Kind]rcmgr.Refusals, k rcmgr.Kind) int64 {
		of := by[k]
		return countsOf(&of)[dimConnsIn]
	}
	refused := grown(&before.refused, conns(s.Refusals, rcmgr.KindSubnet))
	would := grown(&before.would, conns(s.WouldRefuse, rcmgr.KindSubnet))
	g.rates += grown(&before.rate, conns(s.Refusals, rcmgr.KindRate)+conns(s.WouldRefuse, rcmgr.KindRate))
	for _, sub := range s.Gates.Fullest {
		n := g.networks[sub.Prefix]
		if n == nil {
			n = &seenNetwork{limit: sub.Limit}
			g.networks[sub.Prefix] = n
		}
		var held amounts
		held[dimConnsIn] = sub.Conns
		n.looks = append(n.looks, look{s.Taken, held})
		if sub.Conns > n.peak {
			n.peak, n.at, n.in = sub.Conns, s.Taken, name
		}
		n.limit = min(n.limit, sub.Limit)
		if sub.Conns >= sub.Limit { // only a network that is full refuses
			n.refused, n.would = n.refused+refused, n.would+would
		}
	}
}

// mostNetworks is how many networks get limits of their own.
const mostNetworks = 64

// gates proposes limits for networks that need more connections than the gates admit with the
// margin. All others keep what is in force: snapshots show only the fullest networks, so a lower
// limit, or a higher one for all, has no evidence. A network with a limit of its own also gets
// the rate at which it may come back with all of its connections.
func (w *work) gates() {
	g := &w.e.gates
	if g.rates > 0 {
		w.p.Notes = append(w.p.Notes, fmt.Sprintf("The connect rate refused %s, or would have; what was seen does not show from where.", text.Plural(g.rates, "connection")))
	}
	var out rcmgr.GateLimits
	var rates []*Reason
	all := slices.SortedFunc(maps.Keys(g.networks), func(a, b netip.Prefix) int {
		return cmp.Or(cmp.Compare(g.networks[b].peak, g.networks[a].peak), cmp.Compare(a.String(), b.String()))
	})
	for _, network := range all {
		r := w.networkLimit(network, g.networks[network])
		if r == nil {
			continue
		}
		if len(out.Subnets.Networks) == mostNetworks {
			w.p.Notes = append(w.p.Notes, fmt.Sprintf("More than %d networks need more connections than the gates admit: consider a higher limit for all, in Gates.Subnets.", mostNetworks))
			break
		}
		if out.Subnets.Networks == nil {
			out.Subnets.Networks, out.Rate.Networks = make(map[netip.Prefix]rcmgr.LimitVal), make(map[netip.Prefix]rcmgr.ConnRate)
		}
		out.Subnets.Networks[network] = countVal(r.Value)
		w.gateReasons = append(w.gateReasons, r)
		rate, known := g.rateOf(network)
		if !known || int64(rate.Burst.Build(0)) >= 2*r.Value {
			continue
		}
		again := *r
		again.Place, again.Rule, again.Was = fmt.Sprintf("Gates.Rate.Networks[%q]", network), RuleBurst, int64(rate.Burst.Build(0))
		again.Value, again.Refused, again.WouldRefuse = 2*r.Value, 0, 0
		rate.Burst = countVal(again.Value)
		// A bucket has to be full again after a day at most.
		rate.PerSecond = max(rate.PerSecond, math.Ceil(1000*float64(again.Value)/86_400)/1000)
		again.rate = rate
		out.Rate.Networks[network] = rate
		rates = append(rates, &again)
	}
	w.gateReasons = append(w.gateReasons, rates...)
	if len(w.gateReasons) > 0 {
		w.gateLimits = &out
	}
}

// networkLimit proposes the limit of a network. It returns nil if the limit in force has room for
// what the network needs.
func (w *work) networkLimit(network netip.Prefix, seen *seenNetwork) *Reason {
	r := &Reason{Place: fmt.Sprintf("Gates.Subnets.Networks[%q]", network), Rule: RuleMargin, Was: seen.limit, gate: true,
		Seen: seen.peak, Usual: usual(seen.looks, dimConnsIn), At: seen.at, In: seen.in,
		Refused: seen.refused, WouldRefuse: seen.would, Looks: len(seen.looks), Span: w.e.span()}
	r.Value = roundUp(max(w.o.Margin*float64(r.Usual), (1+w.o.Margin)/2*float64(r.Seen)), false)
	if system := w.rows[scope{kind: rcmgr.KindSystem}]; system != nil && system[dimConnsIn] != nil && r.Value > system[dimConnsIn].Value {
		r.Value, r.Rule = system[dimConnsIn].Value, RuleOuter
	}
	if r.Value <= seen.limit || seen.limit == 0 { // 0: the operator has blocked it
		return nil
	}
	return r
}

// rateOf returns the rate in force of a network, if it is known and there is one.
func (g *seenGates) rateOf(network netip.Prefix) (rcmgr.ConnRate, bool) {
	rate, ok := g.limits.Rate.Networks[network]
	if !ok {
		levels := g.limits.Rate.IPv4
		if network.Addr().Is6() {
			levels = g.limits.Rate.IPv6
		}
		rate, ok = levels[network.Bits()]
	}
	return rate, ok && rate.PerSecond > 0
}

// countVal returns a number of connections as a limit.
func countVal(n int64) rcmgr.LimitVal { return rcmgr.LimitVal(min(n, math.MaxInt-1)) }

// text returns the value as the configuration shows it.
func (r *Reason) text() string {
	switch {
	case r.rate != (rcmgr.ConnRate{}):
		return fmt.Sprintf("%g/s, burst %d", r.rate.PerSecond, r.rate.Burst)
	case r.Value == math.MaxInt64:
		return "unlimited"
	}
	return strconv.FormatInt(r.Value, 10)
}
