package rcmgr

// The events of a trace: as reporters receive them, and as they wait in the queue.

import (
	"encoding/json"
	"strconv"
)

// TraceEvtTyp is the type of an event.
type TraceEvtTyp string

const (
	// TraceStartEvt is the first event. Limit is the manager's Limiter.
	TraceStartEvt TraceEvtTyp = "start"
	// TraceCreateScopeEvt means that a scope was made. Limit is a *BaseLimit.
	TraceCreateScopeEvt TraceEvtTyp = "create_scope"
	// TraceDestroyScopeEvt means that a scope was destroyed.
	TraceDestroyScopeEvt TraceEvtTyp = "destroy_scope"
	// TraceReserveMemoryEvt means that a scope reserved Delta bytes and now holds Memory.
	TraceReserveMemoryEvt TraceEvtTyp = "reserve_memory"
	// TraceBlockReserveMemoryEvt means that a scope, which holds Memory, refused Delta
	// bytes.
	TraceBlockReserveMemoryEvt TraceEvtTyp = "block_reserve_memory"
	// TraceReleaseMemoryEvt means that a scope released -Delta bytes and now holds
	// Memory.
	TraceReleaseMemoryEvt TraceEvtTyp = "release_memory"
	// TraceAddStreamEvt means that a scope admitted DeltaIn and DeltaOut streams and now
	// holds StreamsIn and StreamsOut.
	TraceAddStreamEvt TraceEvtTyp = "add_stream"
	// TraceBlockAddStreamEvt means that a scope, which holds StreamsIn and StreamsOut,
	// refused DeltaIn and DeltaOut streams.
	TraceBlockAddStreamEvt TraceEvtTyp = "block_add_stream"
	// TraceRemoveStreamEvt means that a scope released streams. Its fields are those of
	// TraceAddStreamEvt, with negative deltas.
	TraceRemoveStreamEvt TraceEvtTyp = "remove_stream"
	// TraceAddConnEvt means that a scope admitted DeltaIn and DeltaOut connections with
	// Delta file descriptors, and now holds ConnsIn, ConnsOut and FD.
	TraceAddConnEvt TraceEvtTyp = "add_conn"
	// TraceBlockAddConnEvt means that a scope, which holds ConnsIn, ConnsOut and FD,
	// refused DeltaIn and DeltaOut connections with Delta file descriptors.
	TraceBlockAddConnEvt TraceEvtTyp = "block_add_conn"
	// TraceRemoveConnEvt means that a scope released connections. Its fields are those of
	// TraceAddConnEvt, with negative deltas.
	TraceRemoveConnEvt TraceEvtTyp = "remove_conn"
	// TraceLetGoEvt means that the host closed a connection or reset a stream in order to make
	// room (see WithRoom). Name is that of its scope, which was done by then.
	TraceLetGoEvt TraceEvtTyp = "let_go"
	// TraceDroppedEvt is in the place of Delta events that were dropped.
	TraceDroppedEvt TraceEvtTyp = "dropped"
)

// TraceEvt is one event: what happened to one scope, and what it holds since. The types
// of events say which fields they use. The others are zero, and left out of JSON.
type TraceEvt struct {
	// Time is when the event happened, in local time and the format time.RFC3339Nano.
	Time string
	Type TraceEvtTyp

	// Scope is the class of the scope, and Name is its name as in errors. They are empty
	// only in events that are not about a scope.
	Scope *scopeClass `json:",omitempty"`
	Name  string      `json:",omitempty"`

	Limit any `json:",omitempty"`

	// Priority is the priority of a memory reservation.
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

// scopeClass says which scope an event is about, so that no name has to be parsed.
type scopeClass struct {
	// Kind is the kind of the scope, or of the owner of a span.
	Kind Kind
	// Name is the name of a service or protocol, the number of a connection or stream, or
	// the prefix of a gate.
	Name string
	// Peer is the ID of a peer.
	Peer string
	// Span has the number of a span, after the numbers of the spans that own it,
	// outermost first, as in "2.1". It is empty for all other scopes.
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

// classNames has, for each kind, the JSON member of a scopeClass for its Name.
var classNames = [numKinds]string{
	KindService: "Service", KindServicePeer: "Service",
	KindProtocol: "Protocol", KindProtocolPeer: "Protocol",
	KindConn: "Conn", KindStream: "Stream",
	KindSubnet: "Subnet", KindRate: "Subnet",
}

// MarshalJSON writes the class, and the name of the scope within its class.
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

// appendJSONText appends a string as encoding/json writes it, and calls encoding/json
// only if the string needs escaping.
func appendJSONText(b []byte, s string) []byte {
	for i := range len(s) {
		switch c := s[i]; {
		case c < ' ', c >= 0x7f, c == '"', c == '\\', c == '<', c == '>', c == '&':
			text, _ := json.Marshal(s) // cannot fail for a string
			return append(b, text...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

// traceEvent is a TraceEvt without strings, as it waits in the queue.
type traceEvent struct {
	typ      TraceEvtTyp
	at       int64 // Unix time in nanoseconds, set by push
	name     scopeName
	limit    *amounts // must not change after push
	priority uint8

	delta, deltaIn, deltaOut int64

	memory                int64
	streamsIn, streamsOut int64
	connsIn, connsOut, fd int64
}
