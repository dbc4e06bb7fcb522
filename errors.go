package rcmgr

// Refusals as errors, and the names of scopes. An error carries numbers, and its text is
// made only when it is read, because during a flood most errors are never read.

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// Cause is the rule that refused a request.
type Cause uint8

const (
	// CauseLimit means that the scope would have held more than its limit, or more than
	// the part of its limit that the request's priority may fill.
	CauseLimit Cause = iota
	// CauseCrowding means that the rest of the transient scope's limit on streams is kept
	// for peers that hold little of it, or for inbound streams (see WithNewcomersQuarter).
	CauseCrowding
	// CauseSubnet means that there are too many connections from one IP prefix.
	CauseSubnet
	// CauseRate means that there were too many connection attempts from one IP prefix in a
	// short time, or that connections or streams entered a scope faster than its Rates say.
	CauseRate
	// CauseMemoryPressure means that the process has too much memory in use (see
	// WithMemoryPressure).
	CauseMemoryPressure
	// CauseFairShare means that more than half of the limit is in use, and the peer or its
	// subnet would hold more than its share of the limit (see WithFairShare).
	CauseFairShare
	// CauseEarmark means that what is left of the limit is kept for peers or protocols that the
	// host has named (see WithEarmarks).
	CauseEarmark
)

var causeNames = [...]string{"limit", "crowding", "subnet", "rate", "memory-pressure", "fair-share", "earmark"}

// String returns "limit", "crowding", "subnet", "rate", "memory-pressure", "fair-share" or
// "earmark".
func (c Cause) String() string { return nameOf(c, causeNames[:]) }

// MarshalText returns String's text, for JSON and logs.
func (c Cause) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads what MarshalText writes. An error says what was expected.
func (c *Cause) UnmarshalText(text []byte) error {
	return unmarshalName(c, text, causeNames[:], "cause of a refusal")
}

// scopeName names a scope by values that a refusal has at hand. Its text is made when it is
// read. That needs no lock, because a name points to nothing that changes. A name with only a
// kind is that of the kind.
type scopeName struct {
	kind Kind
	bits uint8   // prefix length of a subnet plus 1; 0 is no subnet
	span uint32  // number of a span of the scope; 0 is the scope itself
	num  int64   // number of a connection or stream
	text string  // name of a service or protocol, or, as a subnet, of an owner of subnets
	peer peer.ID // of a peer, or of a peer's part of a service or protocol
	net  ip.Key  // address of a subnet
	// around has the numbers of the spans around the span, spanBytes each, beginning with
	// the span's owner.
	around string
}

// subnetName returns the name of a subnet at a gate.
func subnetName(k Kind, key ip.Key, bits int) scopeName {
	return scopeName{kind: k, net: key, bits: uint8(bits) + 1}
}

// prefix returns the subnet that n names, or an invalid prefix if it names none.
func (n *scopeName) prefix() netip.Prefix {
	if n.bits == 0 {
		return netip.Prefix{}
	}
	return n.net.Prefix(int(n.bits) - 1)
}

// own returns the part of the name that differs among services, protocols or subnets.
func (n *scopeName) own() string {
	if n.bits != 0 {
		return n.prefix().String()
	}
	return n.text
}

// spanBytes is the number of bytes of a span's number in scopeName.around.
const spanBytes = 4

func (n *scopeName) String() string { return n.ofScope() + n.spanTexts(".span-") }

// spans returns the numbers of the span and of those around it, such as "2.1", the outermost
// first. It returns the empty string if n names no span.
func (n *scopeName) spans() string { return strings.TrimPrefix(n.spanTexts("."), ".") }

// spanTexts returns the numbers of the spans, each after the text before, the outermost
// first.
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

// ofScope returns the text of the name without its spans.
func (n *scopeName) ofScope() string {
	switch n.kind {
	case KindConn, KindStream:
		if n.num != 0 {
			return n.kind.String() + "-" + strconv.FormatInt(n.num, 10)
		}
	case KindPeer:
		return "peer:" + n.peer.String()
	case KindService, KindProtocol, KindSubnet, KindRate:
		if n.kind == KindSubnet && n.bits == 0 && n.text != "" {
			return "owner:" + n.text
		}
		return n.kind.String() + ":" + n.own()
	case KindServicePeer:
		return "service:" + n.text + ".peer:" + n.peer.String()
	case KindProtocolPeer:
		return "protocol:" + n.text + ".peer:" + n.peer.String()
	}
	return n.kind.String()
}

// LimitError is the error of a refused request. It says which limit refused the request, and
// with which numbers.
//
// Its text, such as "conn-17: system: cannot reserve memory: resource limit exceeded", names the
// scope that was asked, the scope that refused, and what could not be reserved. A connection or
// stream that was not opened is named "conn" or "stream", without a number; only while the manager
// is traced it has one, because the trace names it. errors.Unwrap returns an error without the
// first part; its text is the same for all requests that the scope refuses for the same reason.
// The text of a gate's refusal also has the words of go-libp2p's own manager by which programs
// recognize it: "connections per ip limit exceeded" or "rate limit exceeded".
//
// A LimitError matches network.ErrResourceLimitExceeded. errors.As also finds it as an
// *ErrMemoryLimitExceeded or an *ErrStreamOrConnLimitExceeded. It is immutable, and safe for
// concurrent use; the same one may be returned for several requests.
type LimitError struct {
	why   refusal
	asked askedScope
}

// askedScope is the scope that a request was made to: a connection or stream by its number,
// a span of one by both numbers, and any other scope by name. A connection or stream that was
// not opened has no number. It is small, because a LimitError is all that a refusal allocates.
type askedScope struct {
	// name is the scope's name, or, if numbered, the peer or subnet that holds too much, or nil.
	// It is not written to any more.
	name *scopeName
	num  int64
	kind Kind
	// place belongs to refusal.scope. It is here because here it needs no room of its own.
	place limitPlace
	span  uint32
}

// numbered reports whether the scope is a connection or stream, or a span of one.
func (a *askedScope) numbered() bool { return a.kind == KindConn || a.kind == KindStream }

func (a *askedScope) String() string {
	if !a.numbered() {
		return a.name.String()
	}
	return (&scopeName{kind: a.kind, num: a.num, span: a.span}).String()
}

// Holder returns the name of the peer or subnet that holds too much of the limit, such as
// "peer:12D3Koo…", if that is why the request was refused: with CauseFairShare, or with
// CauseCrowding by a peer. Otherwise it returns the empty string.
func (e *LimitError) Holder() string {
	name := e.asked.name
	switch {
	case name == nil || e.why.cause != CauseCrowding && e.why.cause != CauseFairShare:
		return ""
	case !e.asked.numbered(): // a peer's scope was asked, or a span of it
		return (&scopeName{kind: KindPeer, peer: name.peer}).String()
	}
	return name.String()
}

// Asked returns the name of the scope that the request was made to, such as "conn-17" or
// "stream-4.span-1". A connection that a gate refuses has no scope yet; Asked then returns the
// gate's name.
func (e *LimitError) Asked() string { return e.asked.String() }

// Scope returns the name of the scope or gate that refused, such as "system",
// "peer:12D3Koo…" or "subnet:203.0.113.0/24".
func (e *LimitError) Scope() string { return e.why.scope.String() }

// Kind returns the kind of the scope or gate that refused.
func (e *LimitError) Kind() Kind { return e.why.scope.kind }

// Resource returns the resource that ran out.
func (e *LimitError) Resource() Resource { return resourceOf[e.why.d] }

// Direction returns the direction of the limit that was reached. It is network.DirUnknown for
// a limit on both directions together, on memory, or on file descriptors.
func (e *LimitError) Direction() network.Direction { return directionOf[e.why.d] }

// Current returns how much the scope held, in bytes or as a count. A gate on subnets refuses
// when it is full, so Current is its limit. For CauseRate by a gate, Current and Limit are 0; by
// a scope, they are the burst of its rate, all of whose tokens are taken, see RetryAt. For
// CauseMemoryPressure, Current is how many bytes the process had in use, and Limit the number
// of bytes above which it refuses.
func (e *LimitError) Current() int64 { return e.why.used() }

// RetryAt returns the time from which the rate that refused the request has a token again, if
// no other request takes it before. It is the zero time if no rate of a scope refused.
func (e *LimitError) RetryAt() time.Time {
	if !e.why.byRate() {
		return time.Time{}
	}
	return time.Unix(0, e.why.current)
}

// Attempted returns how much the request asked for, in bytes or as a count.
func (e *LimitError) Attempted() int64 { return e.why.asked }

// Limit returns the limit of the scope that refused, in bytes or as a count. See Current for
// gates.
func (e *LimitError) Limit() int64 { return e.why.limit }

// ConfigKey returns the place of the limit in the configuration, such as
// "System.ConnsInbound" or `Gates.Subnets.IPv4["32"]`, or the name of the option that set it.
// The log of refusals calls it raise. If a peer or network refused that the configuration
// does not name, it is the place of the limit for all that are not named. A limit that the program
// has set with SetLimit holds in place of the one there.
func (e *LimitError) ConfigKey() string {
	key := configKey(e.Kind(), e.why.d, e.why.scope, e.asked.place)
	if e.why.byRate() {
		return rateKey(key, e.why.d)
	}
	return key
}

// rateKey returns the place of the rate beside a limit on d.
func rateKey(key string, d dim) string {
	return ratePlace(strings.TrimSuffix(key, "."+limitNames[d]), d)
}

// Priority returns the priority of a memory reservation, and 255 for other requests.
func (e *LimitError) Priority() uint8 { return e.why.priority }

// Cause returns the rule that refused.
func (e *LimitError) Cause() Cause { return e.why.cause }

// LogValue returns the text of the error and what its methods return, as a group for
// log/slog. It is called only if the log line is written.
func (e *LimitError) LogValue() slog.Value {
	return slog.GroupValue(append([]slog.Attr{slog.String("error", printable(e.Error()))}, e.attrs()...)...)
}

// attrs returns what the methods of e return, by name, for a log.
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
	if at := e.RetryAt(); !at.IsZero() {
		attrs = append(attrs, slog.Time("retry_at", at))
	}
	return append(attrs,
		held("current", e.Current()), slog.Any("attempted", loggedAmount{e.why.d, e.Attempted()}),
		held("limit", e.Limit()), slog.Int("priority", int(e.Priority())),
		slog.String("cause", e.Cause().String()), slog.String("raise", e.ConfigKey()))
}

// MarshalJSON writes an object with what the methods return, each under the method's name.
// Amounts are numbers, and everything else is text. Direction, Holder and RetryAt are omitted if
// there is none.
func (e *LimitError) MarshalJSON() ([]byte, error) {
	fields := struct {
		Error, Asked, Scope       string
		Kind                      Kind
		Resource                  Resource
		Direction                 string `json:",omitempty"`
		Cause                     Cause
		Holder                    string `json:",omitempty"`
		Current, Attempted, Limit int64
		Priority                  uint8
		ConfigKey                 string
		RetryAt                   time.Time `json:",omitzero"`
	}{e.Error(), e.Asked(), e.Scope(), e.Kind(), e.Resource(), "", e.Cause(), e.Holder(),
		e.Current(), e.Attempted(), e.Limit(), e.Priority(), e.ConfigKey(), e.RetryAt()}
	if dir := e.Direction(); dir != network.DirUnknown {
		fields.Direction = dir.String()
	}
	return json.Marshal(fields)
}

func (e *LimitError) Error() string {
	// If the scope that was asked refused itself, it is named once.
	if asked := e.Asked(); e.Scope() != asked {
		return asked + ": " + e.reason().Error()
	}
	return e.Scope() + ": " + e.what()
}

// Unwrap returns the error without the scope that was asked.
func (e *LimitError) Unwrap() error { return e.reason() }

// what returns what could not be reserved, without any names, so that the text is the same
// for all requests.
func (e *LimitError) what() string {
	s := "cannot reserve "
	switch e.Direction() {
	case network.DirInbound:
		s += "inbound "
	case network.DirOutbound:
		s += "outbound "
	}
	words := gateWords[e.Kind()]
	if e.why.byRate() {
		words = gateWords[KindRate]
	}
	return s + e.Resource().String() + words + ": " + network.ErrResourceLimitExceeded.Error()
}

// gateWords are the words of go-libp2p's own manager for refusals by its gates. Programs
// recognize these refusals by the words, because there the errors have no type.
var gateWords = [numKinds]string{
	KindSubnet: ": connections per ip limit exceeded",
	KindRate:   ": rate limit exceeded",
}

// limitReason is a LimitError whose text does not name the scope that was asked.
type limitReason LimitError

func (e *LimitError) reason() *limitReason { return (*limitReason)(e) }

func (r *limitReason) Error() string {
	e := (*LimitError)(r)
	if k := e.Kind(); e.Scope() == e.Asked() && k != KindSubnet && k != KindRate {
		return e.what() // without the number of a connection or stream, so that texts are equal
	}
	return e.Scope() + ": " + e.what()
}

func (r *limitReason) Unwrap() error { return network.ErrResourceLimitExceeded }

// As is LimitError.As.
func (r *limitReason) As(target any) bool { return (*LimitError)(r).As(target) }

// As lets errors.As find the error as an *ErrMemoryLimitExceeded or an
// *ErrStreamOrConnLimitExceeded, the types of go-libp2p's own manager.
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

// ErrStreamOrConnLimitExceeded is a refusal of a stream, a connection or a file descriptor.
// errors.As finds it in each such error. LimitError, which it also finds, says more.
type ErrStreamOrConnLimitExceeded struct{ refusal *LimitError }

func (e *ErrStreamOrConnLimitExceeded) Error() string { return e.refusal.what() }
func (e *ErrStreamOrConnLimitExceeded) Unwrap() error { return network.ErrResourceLimitExceeded }

// ErrMemoryLimitExceeded is a refusal of a memory reservation. errors.As finds it in each
// such error. LimitError, which it also finds, says more.
type ErrMemoryLimitExceeded struct{ refusal *LimitError }

func (e *ErrMemoryLimitExceeded) Error() string { return e.refusal.what() }
func (e *ErrMemoryLimitExceeded) Unwrap() error { return network.ErrResourceLimitExceeded }

// errClosed is the error of every request to a closed manager.
var errClosed = fmt.Errorf("resource manager closed: %w", network.ErrResourceScopeClosed)

var (
	errAttached   = errors.New("already attached")
	errNoProtocol = errors.New("a stream needs a protocol before it can have a service")
	errNoName     = errors.New("the name must not be empty")
)

// negativeSize is the error of a request for a negative number of bytes.
type negativeSize int64

func (n negativeSize) Error() string {
	return fmt.Sprintf("cannot reserve %d bytes: the size must not be negative", int64(n))
}

// scopeError is an error of one scope that is not a refusal.
type scopeError struct {
	scope scopeName
	err   error
}

func (e *scopeError) Error() string { return e.scope.String() + ": " + e.err.Error() }
func (e *scopeError) Unwrap() error { return e.err }

// refusal is why a request was refused.
type refusal struct {
	scope    *scopeName // not written to any more
	d        dim
	cause    Cause
	priority uint8 // the request's
	// current is what the scope held. For a rate of a scope it is when the next token comes, as
	// time.Time.UnixNano has it: what is missing from the bucket is all of it then.
	current int64
	asked   int64
	limit   int64
}

// byRate reports whether a rate of a scope refused, which is not one of a gate.
func (why *refusal) byRate() bool { return why.cause == CauseRate && why.scope.kind != KindRate }

// used returns what the scope held.
func (why *refusal) used() int64 {
	if why.byRate() {
		return why.limit
	}
	return why.current
}

// limitPlace is where the configuration has the limit of a scope or gate, as far as its name
// does not say.
type limitPlace uint8

const (
	placeOfAll            limitPlace = iota // the limit for unnamed peers, or unnamed subnets of one size
	placeOfName                             // the limit of a peer or network that is named
	placeOfCaller                           // the limiter of WithConnRateLimiters
	placeOfSubnetsOption                    // WithLimitPerSubnet
	placeOfNetworksOption                   // WithNetworkPrefixLimit
	placeOfDials                            // as placeOfAll, for the rate of dials
	placeOfDialsByName                      // as placeOfName, for the rate of dials
	placeOfStreams                          // as placeOfAll, for the rate of streams by subnet
	placeOfStreamsByName                    // as placeOfName, for the rate of streams by subnet
)

// configKey returns the place in the configuration of a scope's limit on d, such as
// "System.ConnsInbound" or "PeerDefault.Streams". If which has only a kind, it is the place for
// scopes that are not named.
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
		switch place {
		case placeOfSubnetsOption:
			return "WithLimitPerSubnet"
		case placeOfNetworksOption:
			return "WithNetworkPrefixLimit"
		}
		return gateKey("Gates.Subnets", which.prefix(), place)
	case KindRate:
		switch place {
		case placeOfCaller:
			return "WithConnRateLimiters"
		case placeOfDials:
			return gateKey(dialRates, which.prefix(), placeOfAll)
		case placeOfDialsByName:
			return gateKey(dialRates, which.prefix(), placeOfName)
		case placeOfStreams:
			return gateKey(streamRates, which.prefix(), placeOfAll)
		case placeOfStreamsByName:
			return gateKey(streamRates, which.prefix(), placeOfName)
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

// The places of the rates of dials, and of streams by subnet.
const (
	dialRates   = "Gates.DialRate"
	streamRates = "Gates.StreamRate"
)

// gateKey returns the place of a prefix in the configuration of a gate: that of the network,
// if it is named, or else that of all prefixes of its length.
func gateKey(path string, p netip.Prefix, place limitPlace) string {
	switch {
	case !p.IsValid():
		return path // no single prefix stands out
	case place == placeOfName:
		return fmt.Sprintf("%s.Networks[%q]", path, p)
	}
	return fmt.Sprintf("%s.%s[%q]", path, familyNames[ip.FamilyOf(p.Addr())], strconv.Itoa(p.Bits()))
}
