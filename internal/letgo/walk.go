package letgo

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"github.com/weir-p2p/rcmgr/internal/evict"
	"github.com/weir-p2p/rcmgr/internal/ip"
)

// sight is what is looked at, as bits.
type sight uint8

const (
	sightConns sight = 1 << iota
	sightStreams
	sightHandshakes
)

// sight returns what has to be looked at for a lack.
func (l *Lack) sight() sight {
	switch {
	case l.Streams:
		return sightConns | sightStreams
	case l.Shaking:
		return sightHandshakes
	}
	return sightConns | sightHandshakes
}

// has reports whether all that is wanted was looked at.
func (v *view) has(want sight) bool { return v.sight&want == want }

// view is what was seen of all hosts.
type view struct {
	found  []*found
	sight  sight
	groups evict.Numbers[group]
	names  []group // by number
}

// found is a connection or stream of a host.
type found struct {
	Facts
	conn      network.Conn   // nil while its handshake goes on
	stream    network.Stream // nil for a connection
	shakes    Handshake      // nil without a handshake
	scope     network.ResourceScope
	peer      peer.ID
	protected bool
	streams   int // of a connection
	opened    time.Time
	candidate evict.Candidate // but for what depends on the lack
}

// group is what several connections may belong to.
type group struct {
	level int
	key   ip.Key
	bits  int
	name  string
}

func (g group) String() string {
	if g.name != "" {
		return g.name
	}
	return g.key.Prefix(g.bits).String()
}

// ofPeer is what is known of a peer.
type ofPeer struct {
	since     time.Time
	value     int
	protected bool
}

// look looks at what is wanted of all hosts. A host that fails is left out: nothing of it is let
// go.
func (r *Room) look(now time.Time, want sight) *view {
	r.mu.Lock()
	hosts, shake := r.mu.hosts, r.mu.shake
	r.mu.passes++
	ties := rand.New(rand.NewPCG(r.Seed, r.mu.passes))
	r.mu.Unlock()
	v := &view{sight: want}
	try := func(what string, f func()) {
		if before := len(v.found); !r.engine.Try(what, f) {
			r.noteFault(Walk)
			clear(v.found[before:])
			v.found = v.found[:before]
		}
	}
	if v.has(sightConns) {
		left := mostLooked
		for _, h := range hosts {
			try(fmt.Sprintf("the connections of a host: %T", h.Host), func() { r.lookAt(h, v, now, ties, &left) })
		}
	}
	if v.has(sightHandshakes) && len(shake) > 0 {
		conns := make(map[int64]bool, len(v.found))
		for _, f := range v.found {
			conns[f.Num] = true
		}
		left := mostLooked
		for _, s := range shake {
			try("the handshakes of a host", func() { r.lookAtHandshakes(s, hosts, v, conns, ties, &left) })
		}
	}
	return v
}

// lookAtHandshakes adds connections that are not among those of the hosts yet.
func (r *Room) lookAtHandshakes(of *shaking, hosts []*attached, v *view, conns map[int64]bool, ties *rand.Rand, left *int) {
	for h := range of.all {
		if *left--; *left < 0 {
			return
		}
		scope := r.engine.Own(h.Scope())
		facts, ours := r.engine.Facts(scope)
		if !ours || conns[facts.Num] {
			continue
		}
		f := &found{Facts: facts, shakes: h, scope: scope, opened: h.Began()}
		f.candidate = evict.Candidate{Opened: f.opened.UnixNano(), Since: f.opened.UnixNano(), Tie: ties.Uint64()}
		if p := h.Scope().PeerScope(); p != nil { // what is missing is the muxer
			f.peer = p.Peer()
			for _, host := range hosts {
				known := ask(host.ConnManager(), f.peer)
				f.protected = f.protected || known.protected
				f.candidate.Value = max(f.candidate.Value, known.value)
			}
		}
		r.place(f, h.RemoteMultiaddr(), v)
		v.found = append(v.found, f)
	}
}

// ask returns what a connection manager says of a peer.
func ask(cm connmgr.ConnManager, id peer.ID) (p ofPeer) {
	if cm == nil {
		return p
	}
	p.protected = cm.IsProtected(id, "")
	if t := cm.GetTagInfo(id); t != nil {
		p.value = t.Value
	}
	return p
}

func (r *Room) lookAt(h *attached, v *view, now time.Time, ties *rand.Rand, left *int) {
	net := h.Network()
	if net == nil {
		return
	}
	conns := net.Conns()
	n := min(len(conns), *left)
	if n < len(conns) { // a part of them at each look
		from := int(h.from.Add(int64(n)) % int64(len(conns)))
		conns = append(conns[from:len(conns):len(conns)], conns[:from]...)[:n]
	}
	*left -= n
	cm := h.ConnManager()
	peers := make(map[peer.ID]*ofPeer)
	first := len(v.found)
	for _, c := range conns {
		if c == nil {
			continue
		}
		scope := r.engine.Own(c.Scope())
		facts, ours := r.engine.Facts(scope)
		if !ours {
			continue
		}
		stat := c.Stat()
		f := &found{Facts: facts, conn: c, scope: scope, peer: c.RemotePeer(), streams: stat.NumStreams, opened: stat.Opened}
		p := peers[f.peer]
		if p == nil {
			known := ask(cm, f.peer)
			known.since = stat.Opened
			p = &known
			peers[f.peer] = p
		}
		if stat.Opened.Before(p.since) {
			p.since = stat.Opened
		}
		f.protected = p.protected
		f.candidate = evict.Candidate{Value: p.value, Opened: stat.Opened.UnixNano(), Tie: ties.Uint64()}
		r.place(f, c.RemoteMultiaddr(), v)
		v.found = append(v.found, f)
		if v.has(sightStreams) || len(r.named) > 0 {
			r.lookAtStreams(f, v, ties)
		}
	}
	for _, f := range v.found[first:] {
		f.candidate.Since = peers[f.peer].since.UnixNano()
	}
}

// lookAtStreams adds the streams of a connection.
func (r *Room) lookAtStreams(of *found, v *view, ties *rand.Rand) {
	at := len(v.found)
	for _, s := range of.conn.GetStreams() {
		if s == nil {
			continue
		}
		if r.named[s.Protocol()] {
			of.candidate.Named = true
		}
		if !v.has(sightStreams) {
			continue
		}
		scope := r.engine.Own(s.Scope())
		facts, ours := r.engine.Facts(scope)
		if !ours {
			continue
		}
		opened := s.Stat().Opened
		f := &found{Facts: facts, conn: of.conn, stream: s, scope: scope, peer: of.peer, protected: of.protected, opened: opened}
		f.candidate = of.candidate
		f.candidate.Opened, f.candidate.Tie = opened.UnixNano(), ties.Uint64()
		v.found = append(v.found, f)
	}
	for _, f := range v.found[at:] {
		f.candidate.Named = of.candidate.Named
	}
}

// The lengths of prefixes, by level.
var prefixes = [ip.Families][evict.Levels]int{
	ip.V4: {evict.Address: 32, evict.Subnet: 24, evict.Network: 16},
	ip.V6: {evict.Address: 56, evict.Subnet: 48, evict.Network: 32},
}

// place finds the groups of a connection.
func (r *Room) place(f *found, from multiaddr.Multiaddr, v *view) {
	groups := &f.candidate.Groups
	for level := range groups {
		groups[level] = evict.NoGroup
	}
	own := group{level: evict.Peer, name: string(f.peer)}
	if f.peer == "" { // nothing says which of them are of one peer
		own.key.Lo = uint64(f.Num)
	}
	groups[evict.Peer] = v.number(own)
	at := r.engine.Locate(from)
	var net group
	switch {
	case at.Local:
		return
	case at.Addr.IsValid():
		fam := ip.FamilyOf(at.Addr)
		for _, level := range [...]int{evict.Address, evict.Subnet, evict.Network} {
			if level == evict.Address && at.Relay != "" {
				continue // it is the relay's, which has many peers
			}
			bits := prefixes[fam][level]
			net = group{level: level, key: ip.KeyOf(at.Addr).Cut(uint(fam.BitLen() - bits)), bits: bits}
			groups[level] = v.number(net)
		}
		if r.Group == nil {
			break
		}
		if name := r.Group(at.Addr); name != "" && len(name) <= longestName {
			net = group{level: evict.Owner, name: name}
			groups[evict.Owner] = v.number(net)
		}
	case at.Relay != "":
		net = group{level: evict.Subnet, name: "relay " + at.Relay}
		groups[evict.Subnet] = v.number(net)
	default:
		net = group{level: evict.Network, name: "no address"}
		groups[evict.Network] = v.number(net)
		return // it is no network
	}
	key := net.key
	if net.name != "" {
		h := fnv.New64a()
		h.Write([]byte(net.name))
		key = ip.Key{Hi: h.Sum64(), Lo: 1}
	}
	f.candidate.Net = max(1, r.secret.Of(key))
}

func (v *view) number(g group) int {
	n := v.groups.Of(g)
	if n == len(v.names) {
		v.names = append(v.names, g)
	}
	return n
}

// keep returns the class of what is not let go in any case.
func (f *found) keep(l *Lack, now time.Time) evict.Class {
	switch {
	case f.Allowlisted:
		return evict.Allowlisted
	case f.protected:
		return evict.Protected
	case f.Outbound && !(l.Outbound && f.Waiting && now.Sub(f.opened) >= hungAfter):
		return evict.Outbound
	}
	return evict.Free
}

// median returns when the connection of median age was opened.
func (v *view) median() time.Time {
	var opened []time.Time
	for _, f := range v.found {
		if f.stream == nil && f.shakes == nil {
			opened = append(opened, f.opened)
		}
	}
	if len(opened) == 0 {
		return time.Time{}
	}
	slices.SortFunc(opened, time.Time.Compare)
	return opened[len(opened)/2]
}

// idle reports whether nothing is known to use it. A newcomer needs time to open its first
// stream; under an attack in which most connections are young, less than else.
func (f *found) idle(l *Lack, now, median time.Time) bool {
	if f.stream != nil {
		return f.Waiting && !l.Waiting
	}
	if l.Shaking {
		return false // as are all others
	}
	age := now.Sub(f.opened)
	return f.streams == 0 && (age >= grace || age >= leastGrace && f.opened.Before(median))
}

// fresh reports whether it has not had time to be of use.
func (f *found) fresh(now time.Time) bool { return now.Sub(f.opened) < leastGrace }

// victim returns the report on a victim.
func (f *found) victim(l *Lack, v evict.Victim, seen *view, now time.Time) Victim {
	return Victim{Num: f.Num, Peer: f.peer, Kind: l.Kind, Scope: l.Scope, Limit: l.Limit,
		Stream: f.stream != nil, Reason: v.Why, Group: f.groupName(v.Level, seen), At: now}
}

// groupName returns the name of the group of a level.
func (f *found) groupName(level int, seen *view) string {
	g := f.candidate.Groups[level]
	if g == evict.NoGroup {
		return ""
	}
	if level == evict.Peer {
		return f.peer.String()
	}
	return seen.names[g].String()
}
