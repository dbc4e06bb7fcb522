package suggest

// Scopes, and the eight dimensions of each that are counted.

import (
	"cmp"
	"math"
	"strconv"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/weir-p2p/rcmgr"
)

type dim int

const (
	dimStreams dim = iota
	dimStreamsIn
	dimStreamsOut
	dimConns
	dimConnsIn
	dimConnsOut
	dimFD
	dimMemory
	numDims
)

// dimNames has the names of limits in a configuration.
var dimNames = [numDims]string{"Streams", "StreamsInbound", "StreamsOutbound", "Conns", "ConnsInbound", "ConnsOutbound", "FD", "Memory"}

// dimOrder is the order of limits in a file.
var dimOrder = [numDims]dim{dimStreams, dimStreamsIn, dimStreamsOut, dimConns, dimConnsIn, dimConnsOut, dimFD, dimMemory}

// amounts has one number for each dimension.
type amounts [numDims]int64

func amountsOf(a rcmgr.Amounts) amounts {
	return amounts{
		dimStreams: int64(a.Streams), dimStreamsIn: int64(a.StreamsInbound), dimStreamsOut: int64(a.StreamsOutbound),
		dimConns: int64(a.Conns), dimConnsIn: int64(a.ConnsInbound), dimConnsOut: int64(a.ConnsOutbound),
		dimFD: int64(a.FD), dimMemory: a.Memory,
	}
}

// limitsOf returns the amounts of a limit. No limit is math.MaxInt64, on every machine.
func limitsOf(l rcmgr.BaseLimit) amounts {
	a := amountsOf(rcmgr.Amounts{Streams: l.Streams, StreamsInbound: l.StreamsInbound, StreamsOutbound: l.StreamsOutbound,
		Conns: l.Conns, ConnsInbound: l.ConnsInbound, ConnsOutbound: l.ConnsOutbound, FD: l.FD, Memory: l.Memory})
	for d := range a {
		if a[d] == math.MaxInt {
			a[d] = math.MaxInt64
		}
	}
	return a
}

// setLimit sets one limit. A limit that is too large for the machine's integers is left unlimited.
func setLimit(l *rcmgr.ResourceLimits, d dim, n int64) {
	if d == dimMemory {
		l.Memory = rcmgr.LimitVal64(n)
		switch n {
		case math.MaxInt64:
			l.Memory = rcmgr.Unlimited64
		case 0:
			l.Memory = rcmgr.BlockAllLimit64
		}
		return
	}
	val := rcmgr.LimitVal(n)
	switch {
	case n >= math.MaxInt:
		val = rcmgr.Unlimited
	case n == 0:
		val = rcmgr.BlockAllLimit
	}
	*[...]*rcmgr.LimitVal{&l.Streams, &l.StreamsInbound, &l.StreamsOutbound, &l.Conns, &l.ConnsInbound, &l.ConnsOutbound, &l.FD}[d] = val
}

// scope names a scope, or all unnamed scopes of a kind that has names.
type scope struct {
	kind rcmgr.Kind
	name string // of a service or protocol; a peer.ID of a peer that has limits of its own
}

// places has the name of each kind in a configuration.
var places = map[rcmgr.Kind]string{
	rcmgr.KindSystem: "System", rcmgr.KindTransient: "Transient",
	rcmgr.KindAllowlistedSystem: "AllowlistedSystem", rcmgr.KindAllowlistedTransient: "AllowlistedTransient",
	rcmgr.KindService: "Service", rcmgr.KindServicePeer: "ServicePeer",
	rcmgr.KindProtocol: "Protocol", rcmgr.KindProtocolPeer: "ProtocolPeer",
	rcmgr.KindPeer: "Peer", rcmgr.KindConn: "Conn", rcmgr.KindStream: "Stream",
}

// isNamed reports whether scopes of a kind have names.
func isNamed(k rcmgr.Kind) bool { return k >= rcmgr.KindService && k <= rcmgr.KindPeer }

// place returns where the limits of a scope stand in a configuration.
func (s scope) place() string {
	switch {
	case !isNamed(s.kind):
		return places[s.kind]
	case s.name == "":
		return places[s.kind] + "Default"
	case s.kind == rcmgr.KindPeer:
		return places[s.kind] + "[" + strconv.Quote(peer.ID(s.name).String()) + "]"
	}
	return places[s.kind] + "[" + strconv.Quote(s.name) + "]"
}

// String returns the name of the scope as in errors.
func (s scope) String() string {
	if s.name == "" {
		return s.kind.String()
	}
	return s.kind.String() + ":" + s.name
}

// scopeAt is the inverse of place.
func scopeAt(place string) (scope, bool) {
	kind, key, named := strings.Cut(place, "[")
	if !named {
		kind = strings.TrimSuffix(kind, "Default")
	}
	for k, name := range places {
		if name != kind {
			continue
		}
		s := scope{kind: k}
		if named {
			text, err := strconv.Unquote(strings.TrimSuffix(key, "]"))
			if err != nil {
				return scope{}, false
			}
			s.name = text
			if k == rcmgr.KindPeer {
				id, err := peer.Decode(text)
				if err != nil {
					return scope{}, false
				}
				s.name = string(id)
			}
		}
		return s, true
	}
	return scope{}, false
}

// compareScopes orders scopes as a configuration does.
func compareScopes(a, b scope) int {
	return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.name, b.name))
}

// hasLimit reports whether a limit on d means anything for scopes of a kind.
func hasLimit(k rcmgr.Kind, d dim) bool {
	switch k {
	case rcmgr.KindService, rcmgr.KindServicePeer, rcmgr.KindProtocol, rcmgr.KindProtocolPeer:
		return d == dimStreams || d == dimStreamsIn || d == dimStreamsOut || d == dimMemory
	case rcmgr.KindConn, rcmgr.KindStream:
		return d == dimMemory
	}
	return true
}

const mib = 1 << 20

// What libp2p's own protocols need, from which the floors follow. All of it is inbound; what is
// outbound is the node's own doing, so there is room for twice as much.
const (
	// floorPeers is how many peers a node has at once at least. Identify believes an address of
	// the node when four peers have seen it, and AutoRelay chooses among four candidates.
	floorPeers = 4
	// connsOfPeer is how many connections come from one peer: one directly and one through a
	// relay, and each of them once more, when a peer comes back before its old connections are
	// missed.
	connsOfPeer = 4
	// freshConns is how many of them are new at once: one directly, one through a relay.
	freshConns = 2
	// streamsOfConn is how many streams there are on each connection: identify, and its push.
	streamsOfConn = 2
	// lasting is how many streams of a peer last: ping, Kademlia, a circuit of the relay, and one
	// of the program's own.
	lasting = 4
	// passing is how many streams of a peer are soon over: AutoNAT's request and its dial back, a
	// reservation at the relay, and hole punching.
	passing = 4
	// window is what yamux takes for a stream as soon as it is open, in bytes.
	window = 256 << 10

	// A peer may do all of this at once. Of four peers, each has one connection with its streams,
	// and those that last. A service or protocol has a stream on each connection.
	streamsOfPeer  = connsOfPeer*streamsOfConn + lasting + passing
	streamsOfAll   = floorPeers * (streamsOfConn + lasting)
	connsOfAll     = floorPeers * connsOfPeer
	freshOfAll     = floorPeers * freshConns
	streamsOfNamed = floorPeers * connsOfPeer
)

// floorOf returns what any node needs for libp2p's own protocols.
func floorOf(k rcmgr.Kind, d dim) int64 {
	floor, ok := map[rcmgr.Kind]amounts{
		rcmgr.KindSystem: both(streamsOfAll, connsOfAll, streamsOfAll*window),
		// A stream has no protocol yet while that is negotiated.
		rcmgr.KindTransient:   both(floorPeers*streamsOfConn, freshOfAll, floorPeers*streamsOfConn*window),
		rcmgr.KindService:     both(streamsOfNamed, 0, streamsOfNamed*window),
		rcmgr.KindServicePeer: both(connsOfPeer*streamsOfConn, 0, connsOfPeer*streamsOfConn*window),
		rcmgr.KindPeer:        both(streamsOfPeer, connsOfPeer, streamsOfPeer*window),
		rcmgr.KindConn:        {dimMemory: 32 * mib}, // as in go-libp2p's default limits
		rcmgr.KindStream:      {dimMemory: 16 * mib},
	}[floorLike(k)]
	if !ok {
		return 0
	}
	return floor[d]
}

// floorOfUnseen returns what a service or protocol gets that was never seen: a stream of each of the
// peers that a node has at least, with its window.
func floorOfUnseen(d dim) int64 {
	return both(floorPeers, 0, floorPeers*window)[d]
}

// both returns a floor with the given inbound streams and connections, twice as many outbound ones,
// and a descriptor for each inbound connection.
func both(streams, conns, memory int64) amounts {
	return amounts{dimStreamsIn: streams, dimStreamsOut: 2 * streams, dimConnsIn: conns, dimConnsOut: 2 * conns,
		dimFD: conns, dimMemory: memory}
}

func floorLike(k rcmgr.Kind) rcmgr.Kind {
	switch k {
	case rcmgr.KindAllowlistedSystem:
		return rcmgr.KindSystem
	case rcmgr.KindAllowlistedTransient:
		return rcmgr.KindTransient
	case rcmgr.KindProtocol:
		return rcmgr.KindService
	case rcmgr.KindProtocolPeer:
		return rcmgr.KindServicePeer
	}
	return k
}

// roundUp rounds up to two digits, so that nearly equal needs come to the same limit. Bytes
// are rounded to two digits of KiB, MiB or GiB: a step of a whole MiB would make limits of a few
// MiB differ by more than what they are based on.
func roundUp(n float64, bytes bool) int64 {
	unit, least := 1.0, 1.0
	if bytes {
		for unit = 1024; n/unit >= 1024; unit *= 1024 {
		}
		least = 0.1
	}
	n = max(0, n) / unit
	step := least
	for n/step > 99.999999 {
		step *= 10
	}
	up := math.Ceil(math.Ceil(n/step-1e-9) * step * unit)
	if up >= math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(up)
}
