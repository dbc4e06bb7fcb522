package rcmgr

// What a refusal says. An error carries numbers; its text is built when
// somebody reads it, because under a flood most are never read.

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// Cause says which rule refused a request.
type Cause uint8

const (
	// CauseLimit: the scope would have held more than its limit, or than the
	// part of it that the priority may fill.
	CauseLimit Cause = iota
	// CauseCrowding: what is left of the transient scope's streams in this direction is
	// kept for peers that hold less than a quarter of them, or for inbound streams; see
	// WithNewcomersQuarter.
	CauseCrowding
	// CauseSubnet: too many connections from one IP prefix.
	CauseSubnet
	// CauseRate: too many connection attempts from one IP prefix in a short time.
	CauseRate
	// CauseMemoryPressure: the process has too much memory in use, see
	// WithMemoryPressure.
	CauseMemoryPressure
	// CauseFairShare: more than half of the limit is in use, and this peer, or all of
	// its subnet, would hold more than their share of it, see WithFairShare.
	CauseFairShare
)

var causeNames = [...]string{"limit", "crowding", "subnet", "rate", "memory-pressure", "fair-share"}

// String returns "limit", "crowding", "subnet", "rate", "memory-pressure" or
// "fair-share".
func (c Cause) String() string { return nameOf(c, causeNames[:]) }

// MarshalText returns String's text, for JSON and logs.
func (c Cause) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads what MarshalText writes. An error says what was expected.
func (c *Cause) UnmarshalText(text []byte) error {
	return unmarshalName(c, text, causeNames[:], "cause of a refusal")
}

// scopeName says which scope is meant, by what is at hand where somebody is refused. Its
// text is made when it is read, which needs no lock: a name points to nothing that changes.
// Without more than a kind, it is the name of the kind.
type scopeName struct {
	kind Kind
	bits uint8   // of a subnet, and one more: 0 is none
	span uint32  // the number of a span of the scope that is meant, 0 for the scope itself
	num  int64   // of a connection or stream
	text string  // of a service or protocol
	peer peer.ID // of a peer, or of a peer's part of a service or protocol
	net  ip.Key  // of a subnet
	// around has the numbers of the spans around the span, spanBytes each, its owner's first.
	around string
}

// subnetName returns the name of a subnet at a gate.
func subnetName(k Kind, key ip.Key, bits int) scopeName {
	return scopeName{kind: k, net: key, bits: uint8(bits) + 1}
}

// prefix returns the subnet that is named, an invalid one if there is none.
func (n *scopeName) prefix() netip.Prefix {
	if n.bits == 0 {
		return netip.Prefix{}
	}
	return n.net.Prefix(int(n.bits) - 1)
}

// own returns what tells a service, protocol or subnet from others of its kind.
func (n *scopeName) own() string {
	if n.bits != 0 {
		return n.prefix().String()
	}
	return n.text
}

// spanBytes is the room that a span's number takes in scopeName.around.
const spanBytes = 4

func (n *scopeName) String() string { return n.ofScope() + n.spanTexts(".span-") }

// spans returns the numbers of the span and of those around it, the outermost first, such
// as "2.1"; the empty string for what is no span.
func (n *scopeName) spans() string { return strings.TrimPrefix(n.spanTexts("."), ".") }

// spanTexts returns the number of each span after a text, the outermost first.
func (n *scopeName) spanTexts(before string) (text string) {
	if n.span == 0 {
		return ""
	}
	number := func(seq uint32) { text += before + strconv.FormatUint(uint64(seq), 10) }
	for at := len(n.around) - spanBytes; at >= 0; at -= spanBytes {
		number(binary.BigEndian.Uint32([]byte(n.around[at:])))
	}
	number(n.span)
	return text
}

// ofScope returns the text of the scope, without its spans.
func (n *scopeName) ofScope() string {
	switch n.kind {
	case KindConn, KindStream:
		if n.num != 0 {
			return n.kind.String() + "-" + strconv.FormatInt(n.num, 10)
		}
	case KindPeer:
		return "peer:" + n.peer.String()
	case KindService, KindProtocol, KindSubnet, KindRate:
		return n.kind.String() + ":" + n.own()
	case KindServicePeer:
		return "service:" + n.text + ".peer:" + n.peer.String()
	case KindProtocolPeer:
		return "protocol:" + n.text + ".peer:" + n.peer.String()
	}
	return n.kind.String()
}

// LimitError says which limit refused a request, and with which numbers.
//
// Its text reads "conn-17: system: cannot reserve inbound connection: resource
// limit exceeded": the scope that was asked, the scope that refused, what it
// refused. errors.Unwrap gives an error without the first part, whose text is
// the same for everybody whom that scope refuses for that reason. What a gate refuses
// is said in the words of go-libp2p's own manager, too, by which programs know it:
// "connections per ip limit exceeded" or "rate limit exceeded".
//
// It matches network.ErrResourceLimitExceeded, and errors.As finds it also as
// *ErrMemoryLimitExceeded or *ErrStreamOrConnLimitExceeded. It is immutable
// and safe for concurrent use.
type LimitError struct {
	why   refusal
	asked askedScope
}

// askedScope is the scope to which a request was made: a connection or stream by its
// number, a span of it by its own, too, or anything else by name. That is short, for who
// refuses makes little else than a LimitError.
type askedScope struct {
	// name is that of the scope, if it has no number. Otherwise it is that of the peer or
	// subnet that holds too much, if one does. It is not written to any more.
	name *scopeName
	num  int64
	kind Kind
	// place is that of the limit that refused. It stands where there is room for it.
	place limitPlace
	span  uint32
}

func (a *askedScope) String() string {
	if a.num == 0 {
		return a.name.String()
	}
	return (&scopeName{kind: a.kind, num: a.num, span: a.span}).String()
}

// Holder names the peer or subnet that holds too much of the limit, such as
// "peer:12D3Koo…", where that is the cause of the refusal: CauseFairShare, or CauseCrowding
// by a peer. Otherwise it is empty.
func (e *LimitError) Holder() string {
	name := e.asked.name
	switch {
	case name == nil || e.why.cause != CauseCrowding && e.why.cause != CauseFairShare:
		return ""
	case e.asked.num == 0: // it was asked at a peer's scope, or at a span of it
		return (&scopeName{kind: KindPeer, peer: name.peer}).String()
	}
	return name.String()
}

// Asked names the scope to which the request was made, such as "conn-17" or
// "stream-4.span-1". What a gate refuses has no scope yet: it is the gate's name.
func (e *LimitError) Asked() string { return e.asked.String() }

// Scope names the scope or gate that refused, such as "system",
// "peer:12D3Koo…" or "subnet:203.0.113.0/24".
func (e *LimitError) Scope() string { return e.why.scope.String() }

// Kind is the kind of the scope or gate that refused.
func (e *LimitError) Kind() Kind { return e.why.scope.kind }

// Resource is what ran out.
func (e *LimitError) Resource() Resource { return resourceOf[e.why.d] }

// Direction is the direction whose limit was reached, or network.DirUnknown
// for a limit on both directions together, on memory or on descriptors.
func (e *LimitError) Direction() network.Direction { return directionOf[e.why.d] }

// Current is what the scope held, in bytes or as a number. A gate on subnets is full
// when it refuses: Current is its limit. For a rate, Current and Limit are 0. For
// CauseMemoryPressure they are the bytes that the process had in use, and those above
// which it refuses.
func (e *LimitError) Current() int64 { return e.why.current }

// Attempted is what was asked for, in bytes or as a number.
func (e *LimitError) Attempted() int64 { return e.why.asked }

// Limit is the limit of the scope that refused, in bytes or as a number.
func (e *LimitError) Limit() int64 { return e.why.limit }

// ConfigKey returns the place of the limit in the configuration of limits, such as
// "System.ConnsInbound" or `Gates.Subnets.IPv4["32"]`, or the option that set it. It is
// what the log of refusals calls raise. Where the limits name the peer or network that
// refused, it is the place of that name; otherwise that of all that are not named.
func (e *LimitError) ConfigKey() string {
	return configKey(e.Kind(), e.why.d, e.why.scope, e.asked.place)
}

// Priority is that of a memory reservation; 255 for everything else.
func (e *LimitError) Priority() uint8 { return e.why.priority }

// Cause tells which rule refused.
func (e *LimitError) Cause() Cause { return e.why.cause }

// LogValue returns the text and all that it is made of by name, for log/slog. It is made
// when a log is written.
func (e *LimitError) LogValue() slog.Value {
	return slog.GroupValue(append([]slog.Attr{slog.String("error", printable(e.Error()))}, e.attrs()...)...)
}

// attrs says all numbers by name, for a log.
func (e *LimitError) attrs() []slog.Attr {
	held := func(key string, n int64) slog.Attr { return slog.Any(key, amountFor(e.Kind(), e.why.d, n)) }
	attrs := []slog.Attr{
		slog.String("asked", printable(e.Asked())), slog.String("scope", printable(e.Scope())),
		slog.String("kind", e.Kind().String()), slog.String("resource", e.Resource().String()),
	}
	if dir := e.Direction(); dir != network.DirUnknown {
		attrs = append(attrs, slog.String("direction", dir.String()))
	}
	if holder := e.Holder(); holder != "" {
		attrs = append(attrs, slog.String("holder", holder))
	}
	return append(attrs,
		held("current", e.Current()), slog.Any("attempted", loggedAmount{e.why.d, e.Attempted()}), held("limit", e.Limit()),
		slog.Int("priority", int(e.Priority())), slog.String("cause", e.Cause().String()), slog.String("raise", e.ConfigKey()))
}

// MarshalJSON writes what the methods return, by their names: amounts in bytes or as
// numbers, everything else in words. Direction and Holder are left out where there is none.
func (e *LimitError) MarshalJSON() ([]byte, error) {
	said := struct {
		Error, Asked, Scope       string
		Kind                      Kind
		Resource                  Resource
		Direction                 string `json:",omitempty"`
		Cause                     Cause
		Holder                    string `json:",omitempty"`
		Current, Attempted, Limit int64
		Priority                  uint8
		ConfigKey                 string
	}{e.Error(), e.Asked(), e.Scope(), e.Kind(), e.Resource(), "", e.Cause(), e.Holder(),
		e.Current(), e.Attempted(), e.Limit(), e.Priority(), e.ConfigKey()}
	if dir := e.Direction(); dir != network.DirUnknown {
		said.Direction = dir.String()
	}
	return json.Marshal(said)
}

func (e *LimitError) Error() string {
	// A scope that refuses by itself is not named twice.
	if asked := e.Asked(); e.Scope() != asked {
		return asked + ": " + e.reason().Error()
	}
	return e.Scope() + ": " + e.what()
}

// Unwrap gives the refusal without the scope that was asked.
func (e *LimitError) Unwrap() error { return e.reason() }

// what returns what could not be had, without names: the text is the same for everybody.
func (e *LimitError) what() string {
	s := "cannot reserve "
	switch e.Direction() {
	case network.DirInbound:
		s += "inbound "
	case network.DirOutbound:
		s += "outbound "
	}
	return s + e.Resource().String() + gateWords[e.Kind()] + ": " + network.ErrResourceLimitExceeded.Error()
}

// gateWords are how go-libp2p's own manager words what its gates refuse. Programs know
// the gates' refusals by these words, for there they are errors of no type.
var gateWords = [numKinds]string{
	KindSubnet: ": connections per ip limit exceeded",
	KindRate:   ": rate limit exceeded",
}

// limitReason is a LimitError seen from inside.
type limitReason LimitError

func (e *LimitError) reason() *limitReason { return (*limitReason)(e) }

func (r *limitReason) Error() string {
	e := (*LimitError)(r)
	if k := e.Kind(); e.Scope() == e.Asked() && k != KindSubnet && k != KindRate {
		return e.what() // no number of a connection or stream: the text is for everybody
	}
	return e.Scope() + ": " + e.what()
}

func (r *limitReason) Unwrap() error { return network.ErrResourceLimitExceeded }

// As finds what LimitError.As finds.
func (r *limitReason) As(target any) bool { return (*LimitError)(r).As(target) }

// As makes the error visible as the two types that go-libp2p's manager uses.
func (e *LimitError) As(target any) bool {
	switch t := target.(type) {
	case **ErrMemoryLimitExceeded:
		if e.Resource() == ResourceMemory {
			*t = &ErrMemoryLimitExceeded{e}
			return true
		}
	case **ErrStreamOrConnLimitExceeded:
		if e.Resource() != ResourceMemory {
			*t = &ErrStreamOrConnLimitExceeded{e}
			return true
		}
	}
	return false
}

// ErrStreamOrConnLimitExceeded is what errors.As finds for a refused stream,
// connection or file descriptor. LimitError says more.
type ErrStreamOrConnLimitExceeded struct{ refusal *LimitError }

func (e *ErrStreamOrConnLimitExceeded) Error() string { return e.refusal.what() }
func (e *ErrStreamOrConnLimitExceeded) Unwrap() error { return network.ErrResourceLimitExceeded }

// ErrMemoryLimitExceeded is what errors.As finds for a refused memory
// reservation. LimitError says more.
type ErrMemoryLimitExceeded struct{ refusal *LimitError }

func (e *ErrMemoryLimitExceeded) Error() string { return e.refusal.what() }
func (e *ErrMemoryLimitExceeded) Unwrap() error { return network.ErrResourceLimitExceeded }

// errClosed is what a closed manager answers.
var errClosed = fmt.Errorf("resource manager closed: %w", network.ErrResourceScopeClosed)

var (
	errAttached   = errors.New("already attached")
	errNoProtocol = errors.New("a stream needs a protocol before it can have a service")
	errNoName     = errors.New("the name must not be empty")
)

// negativeSize is a number of bytes that cannot be reserved.
type negativeSize int64

func (n negativeSize) Error() string {
	return fmt.Sprintf("cannot reserve %d bytes: the size must not be negative", int64(n))
}

// scopeError is a misuse of one scope.
type scopeError struct {
	scope scopeName
	err   error
}

func (e *scopeError) Error() string { return e.scope.String() + ": " + e.err.Error() }
func (e *scopeError) Unwrap() error { return e.err }

// refusal is the limit that stood in the way.
type refusal struct {
	scope    *scopeName // is not written to any more
	d        dim
	cause    Cause
	priority uint8 // of the request
	current  int64
	asked    int64
	limit    int64
}

// limitPlace says of a scope or gate which place of the configuration has its limit, as far
// as its name does not tell.
type limitPlace uint8

const (
	placeOfAll    limitPlace = iota // that of all peers, or subnets of one size, that are not named
	placeOfName                     // that of the peer or network by its name
	placeOfCaller                   // the program's own limiter of rates
)

// configKey returns the place in the configuration of limits that says how much of d
// a scope may hold: "System.ConnsInbound", "PeerDefault.Streams". Without more
// than a kind, it is the place for those that are not named.
func configKey(k Kind, d dim, which *scopeName, place limitPlace) string {
	named := func(scopes string) string {
		if which.text == "" {
			return scopes + "Default." + limitNames[d]
		}
		return scopes + "[" + strconv.Quote(which.text) + "]." + limitNames[d]
	}
	switch k {
	case KindService:
		return named("Service")
	case KindServicePeer:
		return named("ServicePeer")
	case KindProtocol:
		return named("Protocol")
	case KindProtocolPeer:
		return named("ProtocolPeer")
	case KindPeer:
		if place == placeOfName {
			return fmt.Sprintf("Peer[%q].%s", which.peer, limitNames[d])
		}
		return "PeerDefault." + limitNames[d]
	case KindSubnet:
		return gateKey("Gates.Subnets", which.prefix(), place)
	case KindRate:
		if place == placeOfCaller {
			return "WithConnRateLimiters"
		}
		return gateKey("Gates.Rate", which.prefix(), place)
	case KindProcess:
		return "WithMemoryPressure"
	}
	return [...]string{
		KindSystem: "System", KindTransient: "Transient",
		KindAllowlistedSystem: "AllowlistedSystem", KindAllowlistedTransient: "AllowlistedTransient",
		KindConn: "Conn", KindStream: "Stream",
	}[k] + "." + limitNames[d]
}

// gateKey returns the place of a prefix in what a configuration says about a gate:
// that of a network of its own, or that of all of its length.
func gateKey(path string, p netip.Prefix, place limitPlace) string {
	switch {
	case !p.IsValid():
		return path // nobody in particular
	case place == placeOfName:
		return fmt.Sprintf("%s.Networks[%q]", path, p)
	}
	return fmt.Sprintf("%s.%s[%q]", path, familyNames[ip.FamilyOf(p.Addr())], strconv.Itoa(p.Bits()))
}
