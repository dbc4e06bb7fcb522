package rcmgr

// The events of a trace, as they are told and as they wait.

import (
	"encoding/json"
	"strconv"
)

// TraceEvtTyp says what an event is about.
type TraceEvtTyp string

const (
	// TraceStartEvt comes first; Limit is the manager's Limiter.
	TraceStartEvt TraceEvtTyp = "start"
	// TraceCreateScopeEvt: a scope was made; Limit is a *BaseLimit.
	TraceCreateScopeEvt TraceEvtTyp = "create_scope"
	// TraceDestroyScopeEvt: a scope is no more.
	TraceDestroyScopeEvt TraceEvtTyp = "destroy_scope"
	// TraceReserveMemoryEvt: Delta bytes more, Memory now.
	TraceReserveMemoryEvt TraceEvtTyp = "reserve_memory"
	// TraceBlockReserveMemoryEvt: Delta bytes were refused, Memory is held.
	TraceBlockReserveMemoryEvt TraceEvtTyp = "block_reserve_memory"
	// TraceReleaseMemoryEvt: Delta, which is negative, bytes more, Memory now.
	TraceReleaseMemoryEvt TraceEvtTyp = "release_memory"
	// TraceAddStreamEvt: DeltaIn and DeltaOut streams more, StreamsIn and
	// StreamsOut now.
	TraceAddStreamEvt TraceEvtTyp = "add_stream"
	// TraceBlockAddStreamEvt: DeltaIn and DeltaOut streams were refused.
	TraceBlockAddStreamEvt TraceEvtTyp = "block_add_stream"
	// TraceRemoveStreamEvt: as TraceAddStreamEvt, with negative deltas.
	TraceRemoveStreamEvt TraceEvtTyp = "remove_stream"
	// TraceAddConnEvt: DeltaIn and DeltaOut connections and Delta file
	// descriptors more, ConnsIn, ConnsOut and FD now.
	TraceAddConnEvt TraceEvtTyp = "add_conn"
	// TraceBlockAddConnEvt: DeltaIn and DeltaOut connections with Delta file
	// descriptors were refused.
	TraceBlockAddConnEvt TraceEvtTyp = "block_add_conn"
	// TraceRemoveConnEvt: as TraceAddConnEvt, with negative deltas.
	TraceRemoveConnEvt TraceEvtTyp = "remove_conn"
	// TraceDroppedEvt stands where Delta events are missing.
	TraceDroppedEvt TraceEvtTyp = "dropped"
)

// TraceEvt is one event: what happened to one scope, and what it holds since.
// Which fields have a meaning is said at the types of events; the others are
// zero, and left out of JSON.
type TraceEvt struct {
	// Time is when it happened, as time.RFC3339Nano in local time.
	Time string
	Type TraceEvtTyp

	// Scope classes the scope, Name names it, as in errors. Only events that
	// are about no scope have none.
	Scope *scopeClass `json:",omitempty"`
	Name  string      `json:",omitempty"`

	Limit any `json:",omitempty"`

	// Priority is that of a memory reservation.
	Priority uint8 `json:",omitempty"`

	Delta    int64 `json:",omitempty"`
	DeltaIn  int   `json:",omitempty"`
	DeltaOut int   `json:",omitempty"`

	// Memory is in bytes.
	Memory int64 `json:",omitempty"`

	StreamsIn  int `json:",omitempty"`
	StreamsOut int `json:",omitempty"`

	ConnsIn  int `json:",omitempty"`
	ConnsOut int `json:",omitempty"`

	FD int `json:",omitempty"`
}

// scopeClass says which scope an event is about without a name to be parsed.
type scopeClass struct {
	// Kind is that of the scope, or of the owner of a span.
	Kind Kind
	// Name is that of a service or protocol, the number of a connection or
	// stream, the prefix of a gate.
	Name string
	// Peer is a peer's ID.
	Peer string
	// Span is the number of a span, or the numbers of it and the spans that own
	// it, outermost first, as in "2.1". Empty for all else.
	Span string
}

func classOfScope(n *scopeName) *scopeClass {
	c := &scopeClass{Kind: n.kind, Name: n.own(), Span: n.spans()}
	switch n.kind {
	case KindConn, KindStream:
		c.Name = strconv.FormatInt(n.num, 10)
	case KindPeer, KindServicePeer, KindProtocolPeer:
		c.Peer = n.peer.String()
	}
	return c
}

// classNames are the members of the JSON of a class that hold its name.
var classNames = [numKinds]string{
	KindService: "Service", KindServicePeer: "Service",
	KindProtocol: "Protocol", KindProtocolPeer: "Protocol",
	KindConn: "Conn", KindStream: "Stream",
	KindSubnet: "Subnet", KindRate: "Subnet",
}

// MarshalJSON writes the class, and what names the scope within its class.
func (s scopeClass) MarshalJSON() ([]byte, error) { return s.appendJSON(nil), nil }

func (s *scopeClass) appendJSON(b []byte) []byte {
	b = append(append(append(b, `{"Class":"`...), s.Kind.String()...), '"')
	member := func(key, value string) {
		b = append(append(append(b, `,"`...), key...), `":`...)
		b = appendJSONText(b, value)
	}
	if key := classNames[s.Kind]; key != "" {
		member(key, s.Name)
	}
	switch s.Kind {
	case KindPeer, KindServicePeer, KindProtocolPeer:
		member("Peer", s.Peer)
	}
	if s.Span != "" {
		member("Span", s.Span)
	}
	return append(b, '}')
}

// appendJSONText appends a string as encoding/json writes it, without its help
// where nothing has to be escaped.
func appendJSONText(b []byte, s string) []byte {
	for i := range len(s) {
		switch c := s[i]; {
		case c < ' ', c >= 0x7f, c == '"', c == '\\', c == '<', c == '>', c == '&':
			text, _ := json.Marshal(s) // of a string, there is no error
			return append(b, text...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

// traceEvent is a TraceEvt before anything of it is made into strings.
type traceEvent struct {
	typ      TraceEvtTyp
	at       int64 // Unix time in nanoseconds, set by push
	name     scopeName
	limit    *amounts // must not change any more
	priority uint8

	delta, deltaIn, deltaOut int64

	memory                int64
	streamsIn, streamsOut int64
	connsIn, connsOut, fd int64
}
