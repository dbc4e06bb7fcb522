package rcmgr

// Limits that can never be reached, because everything that counts in their scope also
// counts in another scope with less room. Nothing fails: an operator raises a number, and
// still nothing more is admitted. Only limits that were written are checked. A default
// that leaves no room for another default is not the operator's mistake.

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// Warnings returns one sentence for each limit that was written and can never be reached,
// such as
//
//	System.ConnsInbound is 10000 (override), above System.Conns, which is 160 (default): it can never be reached
//
// A limit is written if its Origin is OriginOverride or OriginCode. The limit that leaves
// it too little room may be computed: such a configuration works, but not as it reads.
// "unlimited" is not a limit, and "blockAll" is deliberate. These are compared: parts of
// a total with the total, and the total with its parts; transient with system; peers,
// services and protocols with system; one peer in a service or protocol with both; the
// memory and the costs of single connections and streams with the scopes that they count
// in; limits of subnets with those of wider subnets and with system. An allowlist lets
// peers and their resources past the system scope; the configuration does not know it.
//
// A manager logs the warnings in one line when it is made and when SetLimits puts other
// limits in force, at level error, which is the level that go-libp2p's loggers show by
// default. It leaves out those about the system scope that its allowlist makes untrue.
// rm.Limits().Warnings() returns those of the limits in force.
func (cfg ConcreteLimitConfig) Warnings() []string { return cfg.unreachable(false) }

// unreachable is Warnings for a manager with or without an allowlist.
func (cfg *ConcreteLimitConfig) unreachable(allowlist bool) []string {
	r := reach{all: placedScopes(cfg)}
	all := &r.all
	if !allowlist {
		r.system = []*room{roomOf(all.System)}
	}
	r.check(KindSystem, all.System)
	r.check(KindTransient, all.Transient, roomOf(all.System))
	r.check(KindAllowlistedSystem, all.AllowlistedSystem)
	r.check(KindAllowlistedTransient, all.AllowlistedTransient, roomOf(all.AllowlistedSystem))

	// The room of the peer that has the most: a limit that this peer can reach is
	// reachable.
	peers := roomOf(all.PeerDefault)
	for _, p := range slices.Sorted(maps.Keys(all.Peer)) {
		peers.widen(all.Peer[p])
	}
	checkShared(&r, KindService, all.ServiceDefault, all.Service, all.ServicePeerDefault, all.ServicePeer, peers)
	checkShared(&r, KindProtocol, all.ProtocolDefault, all.Protocol, all.ProtocolPeerDefault, all.ProtocolPeer, peers)
	r.check(KindPeer, all.PeerDefault, r.system...)
	for _, p := range slices.Sorted(maps.Keys(all.Peer)) {
		r.check(KindPeer, all.Peer[p], r.system...)
	}
	r.check(KindStream, all.Stream, append(slices.Clip(r.system), peers)...)
	somewhere := *peers
	somewhere.widen(all.Transient) // a connection counts there until its peer is known
	r.check(KindConn, all.Conn, append(slices.Clip(r.system), &somewhere)...)
	r.checkCosts(cfg.limits.Costs, peers)
	r.checkSubnets(cfg)
	return r.found
}

// placedScope has the limits of one scope, its place in the configuration, and the
// origins of its limits.
type placedScope struct {
	place   string
	limit   amounts
	origin  [numDims]Origin
	unnamed *placedScope // the default of its kind if this scope is named, or else nil
}

func placedScopes(cfg *ConcreteLimitConfig) perScope[*placedScope] {
	origins := convert(cfg.origins, func(o scopeOrigins) *placedScope { return &placedScope{origin: byDim(o.quantities)} })
	all := overlay(cfg.limits, origins, func(l BaseLimit, from *placedScope) *placedScope {
		return &placedScope{limit: limitsOf(l), origin: from.origin}
	})
	all.each(func(place string, s *placedScope) { s.place = place })
	lieOn(all.ServiceDefault, all.Service)
	lieOn(all.ServicePeerDefault, all.ServicePeer)
	lieOn(all.ProtocolDefault, all.Protocol)
	lieOn(all.ProtocolPeerDefault, all.ProtocolPeer)
	lieOn(all.PeerDefault, all.Peer)
	return all
}

func lieOn[K comparable](unnamed *placedScope, named map[K]*placedScope) {
	for _, s := range named {
		s.unnamed = unnamed
	}
}

// inherits reports whether a named scope has the limit of the unnamed scopes of its kind.
func (s *placedScope) inherits(d dim) bool {
	return s.unnamed != nil && s.limit[d] == s.unnamed.limit[d] && s.origin[d] == s.unnamed.origin[d]
}

// reach collects the limits that can never be reached.
type reach struct {
	all    perScope[*placedScope]
	system []*room // the room of the system scope; empty if an allowlist leads past it
	found  []string
}

// room has, for each resource, the scope that limits it.
type room [numDims]*placedScope

func roomOf(s *placedScope) *room {
	var r room
	for d := range r {
		r[d] = s
	}
	return &r
}

// widen adds a scope in which the same things may count instead.
func (r *room) widen(s *placedScope) {
	for d, most := range r {
		if s.limit[d] > most.limit[d] {
			r[d] = s
		}
	}
}

// check compares the limits of a scope with each other, and with those of all rooms that
// its contents also count in. The warning names the one with the least room.
func (r *reach) check(k Kind, s *placedScope, rooms ...*room) {
	for d := range numDims {
		if !k.canRunOutOf(d) || s.inherits(d) || d != dimMemory && (k == KindConn || k == KindStream) { // their counts are always one
			continue
		}
		r.compare(s.at(d), neverReached, d, append([]*room{roomOf(s)}, rooms...))
	}
}

const neverReached = "it can never be reached"

// compare adds a warning, which ends with follows, if of is a written limit of d that is
// above what one of the rooms has, or above one of others.
func (r *reach) compare(of placedLimit, follows string, d dim, rooms []*room, others ...placedLimit) {
	if !of.written() || of.limit <= 0 || isUnlimited(d, of.limit) {
		return
	}
	short := shortage{of: of}
	for _, in := range rooms {
		short.look(in, d)
	}
	for _, l := range others {
		short.offer(l)
	}
	if short.in != nil {
		r.found = append(r.found, short.String()+": "+follows)
	}
}

// checkShared compares the limits of services, or of protocols, with those of system, and
// the limits of one peer in them with both and with those of a peer.
func checkShared[K ~string](r *reach, k Kind, unnamed *placedScope, named map[K]*placedScope,
	unnamedPair *placedScope, namedPair map[K]*placedScope, peers *room) {
	r.check(k, unnamed, r.system...)
	for _, name := range slices.Sorted(maps.Keys(named)) {
		r.check(k, named[name], r.system...)
	}
	widest := roomOf(unnamed) // of all services or protocols whose peers have the unnamed limits
	for _, name := range slices.Sorted(maps.Keys(named)) {
		if namedPair[name] == nil {
			widest.widen(named[name])
		}
	}
	around := append(slices.Clip(r.system), peers)
	r.check(k.ofPeer(), unnamedPair, append(slices.Clip(around), widest)...)
	for _, name := range slices.Sorted(maps.Keys(namedPair)) {
		r.check(k.ofPeer(), namedPair[name], append(slices.Clip(around), roomOf(cmp.Or(named[name], unnamed)))...)
	}
}

// checkCosts compares the cost of opening a connection or stream with the scopes that it
// counts in.
func (r *reach) checkCosts(costs *Costs, peers *room) {
	rooms := append(slices.Clip(r.system), peers)
	if len(r.system) > 0 { // an allowlist leads past it, to another transient scope
		rooms = append(rooms, roomOf(r.all.Transient))
	}
	conn, stream := costs.perOpening()
	for _, one := range []struct {
		name  string
		bytes int64
	}{{"Conn", conn}, {"Stream", stream}} {
		place := func() string { return "Costs." + one.name }
		r.compare(placedLimit{place, one.bytes, OriginOverride}, "none could be kept", dimMemory, rooms)
	}
}

// checkSubnets compares the limits of subnets with those of wider subnets and of the
// system scope, in which everything that passes a gate counts.
func (r *reach) checkSubnets(cfg *ConcreteLimitConfig) {
	gates, err := cfg.gateConfig(defaultGateConfig())
	if err != nil {
		return // no manager has these limits
	}
	origins := cfg.originsOfGates()
	limits := gates.gateLimits()
	lists := gateLists[LimitVal](limits.Subnets)
	limitAt := func(place string, v LimitVal) placedLimit {
		return placedLimit{func() string { return place }, int64(v.Build(0)), origins[place]}
	}
	system, d := []*room{roomOf(r.all.System)}, dimConnsIn
	if gates.outbound {
		d = dimConns
	}
	for f := range ip.Families {
		levels := *lists.perSubnet(f)
		var wider []placedLimit
		for _, bits := range slices.Sorted(maps.Keys(levels)) {
			l := limitAt(levelPlace("Gates.Subnets", f, bits), levels[bits])
			r.compare(l, neverReached, d, system, wider...)
			wider = append(wider, l)
		}
	}
	eachNetwork("Gates.Subnets", lists.Networks, func(place string, v LimitVal) { r.compare(limitAt(place, v), neverReached, d, system) })
}

// placedLimit is one number of a configuration.
type placedLimit struct {
	place  func() string
	limit  int64
	origin Origin
}

func (s *placedScope) at(d dim) placedLimit {
	return placedLimit{func() string { return s.place + "." + limitNames[d] }, s.limit[d], s.origin[d]}
}

func (l *placedLimit) written() bool { return l.origin >= OriginOverride }

// shortage is a limit, and the limits that leave it the least room.
type shortage struct {
	of placedLimit
	in []placedLimit // one, or the two parts of a total; nil if there is room
}

// look offers the limit of d in a room, and those of its total or its parts.
func (s *shortage) look(in *room, d dim) {
	s.offer(in.at(d))
	switch d {
	case dimStreamsIn, dimStreamsOut:
		s.offer(in.at(dimStreams))
	case dimConnsIn, dimConnsOut:
		s.offer(in.at(dimConns))
	case dimStreams:
		s.offer(in.at(dimStreamsIn), in.at(dimStreamsOut))
	case dimConns:
		s.offer(in.at(dimConnsIn), in.at(dimConnsOut))
	}
}

func (r *room) at(d dim) placedLimit { return r[d].at(d) }

// offer keeps the limits in, whose room is added up, if they leave less room than those
// found so far. A written limit of zero is deliberate, and is not kept.
func (s *shortage) offer(in ...placedLimit) {
	least := s.of.limit
	if s.in != nil {
		least = roomIn(s.in)
	}
	n := roomIn(in)
	if n < least && !(n == 0 && slices.ContainsFunc(in, func(l placedLimit) bool { return l.written() })) {
		s.in = in
	}
}

func roomIn(all []placedLimit) (sum int64) {
	for _, l := range all {
		sum = addCapped(sum, l.limit)
	}
	return sum
}

func (s *shortage) String() string {
	var places, numbers []string
	for _, l := range s.in {
		places = append(places, l.place())
		numbers = append(numbers, fmt.Sprintf("%d (%s)", l.limit, l.origin))
	}
	verb := ", which is "
	if len(s.in) > 1 {
		verb = " together, which are "
	}
	return fmt.Sprintf("%s is %d (%s), above %s%s%s", s.of.place(), s.of.limit, s.of.origin,
		strings.Join(places, " and "), verb, strings.Join(numbers, " and "))
}
