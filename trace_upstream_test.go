package rcmgr

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

// theirEvents records the events of upstream's manager.
type theirEvents []upstream.TraceEvt

func (r *theirEvents) ConsumeEvent(e upstream.TraceEvt) { *r = append(*r, e) }

// requestFor makes a request of amounts by dimension, at a priority.
func requestFor(priority uint8, items ...item) *traceDelta {
	r := &request{priority: priority}
	for _, it := range items {
		switch it.d {
		case dimMemory:
			r.memory = it.n
		case dimFD:
			r.fds = it.n
		case dimStreams, dimConns:
			r.both = it.d
		default:
			r.dir, r.count = it.d, it.n
		}
	}
	return r.delta()
}

// scopeOf names a scope that is there once.
func scopeOf(k Kind) scopeName { return scopeName{kind: k} }

func spanBelow(n scopeName, seq uint32) scopeName {
	if n.span != 0 {
		n.around = string(binary.BigEndian.AppendUint32(nil, n.span)) + n.around
	}
	n.span = seq
	return n
}

// The files in testdata/trace have operations, and the events that upstream has for
// them. Ours, put together by hand as the engine does it, are the same, to the byte of
// JSON. What differs is said where they are compared.
func TestEventsAreThoseOfUpstreamInJSON(t *testing.T) {
	files, err := filepath.Glob("testdata/trace/*.txt")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			text, err := os.ReadFile(name)
			require.NoError(t, err)
			if err := playTraceScript(name, string(text)); err != nil {
				t.Error(err)
			}
		})
	}
}

// A script that says something else than upstream does, or that cannot be read, is an
// error that names its line.
func TestMistakesInTraceScriptsAreFound(t *testing.T) {
	const start = "limits {}\n\tstart\n\tcreated system\n\tcreated transient\n\tcreated allowlistedSystem\n\tcreated allowlistedTransient\n\n"
	const conn = start + "c = OpenConnection inbound\n\tcreated conn-1\n\tgranted transient conns-in=1 -> conns-in=1\n\tgranted system conns-in=1 -> conns-in=1\n"
	require.NoError(t, playTraceScript("x", conn+"\tgranted conn-1 conns-in=1 -> conns-in=1\n"))
	for script, want := range map[string]string{
		"c.Done\n":                                "x:1: expected limits first",
		"limits {\n":                              "x:1: limits: ",
		start + "\tcreated conn-1\n":              "x:1: upstream has 5 events, expected 6",
		start + "c = Open inbound\n":              "x:8: unknown operation Open",
		start + "c = OpenConnection up\n":         `x:8: "up" is no direction`,
		start + "c.Done\n":                        "x:8: no scope is called c",
		start + "s = OpenStream @P\n":             "x:8: OpenStream needs 2 words behind it, and has 1",
		start + "OpenStream @P inbound\n":         "x:8: upstream has 6 events, expected 0",
		start + "OpenStream @P inbound refused\n": "x:8: it was not refused",
		start + "v = ViewService svc\n\tcreated service:svc\nv.Set proto\n":            "x:10: unknown operation Set",
		start + "v = ViewService svc\n\tcreated service:svc\nv.ReserveMemory -1 255\n": "x:10: ",
		start + "v = ViewService svc\n\tcreated service:svc\nv.ReserveMemory 1 256\n":  "x:10: ",
		conn: "x:8: upstream has 4 events, expected 3",
		conn + "\tgranted conn-1 conns-in=1 -> conns-in=2\n":          "x:12: upstream has ",
		conn + "\tgranted conn-1 conns-out=1 -> conns-in=1\n":         "x:12: upstream has ",
		conn + "\treturned conn-1 conns-in=1 -> conns-in=1\n":         "x:12: upstream has ",
		conn + "\tgranted conn-2 conns-in=1 -> conns-in=1\n":          "x:12: upstream has ",
		conn + "\tgranted con-1 conns-in=1 -> conns-in=1\n":           `x:12: "con-1" is no scope`,
		conn + "\tgranted conn-x conns-in=1 -> conns-in=1\n":          `x:12: "conn-x" is no scope`,
		conn + "\tgranted conn-1 conns=in -> conns-in=1\n":            `x:12: "conns=in" is no amount`,
		conn + "\tgranted conn-1 conns-in=1\n":                        "x:12: expected -> and what is held",
		conn + "\tblocked conn-1 conns-in=1 -> conns-in=1\n":          "x:12: expected for and a limit",
		conn + "\tblocked conn-1 conns-in=1 for food -> conns-in=1\n": `x:12: "food" is no amount`,
		conn + "\tmoved conn-1\n":                                     "x:12: unknown event moved",
		conn + "\tcreated\n":                                          "x:12: expected an event and a scope",
	} {
		err := playTraceScript("x", script)
		require.Error(t, err, script)
		require.Contains(t, err.Error(), want, script)
	}
}

// traceScript plays a script: upstream's manager does its operations, and a tracer of ours
// is told its events.
type traceScript struct {
	limiter upstream.Limiter
	rm      network.ResourceManager
	theirs  theirEvents
	scopes  map[string]network.ResourceScope
}

// scriptLine is a line of a script, in words.
type scriptLine struct {
	number int
	words  []string
}

// playTraceScript plays a script, and returns what is wrong with it, with the line.
func playTraceScript(name, text string) error {
	s := &traceScript{scopes: make(map[string]network.ResourceScope)}
	defer func() {
		if s.rm != nil {
			s.rm.Close()
		}
	}()
	text = strings.NewReplacer("@P", peerA, "@Q", peerB).Replace(text)
	var op scriptLine
	var events []scriptLine
	play := func() error {
		if op.words == nil {
			return nil
		}
		if err := s.do(op.words); err != nil {
			return fmt.Errorf("%s:%d: %w", name, op.number, err)
		}
		return s.compare(name, op.number, events)
	}
	number := 0
	for line := range strings.Lines(text) {
		number++
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || strings.HasPrefix(words[0], "#"):
		case strings.HasPrefix(line, "\t"):
			events = append(events, scriptLine{number, words})
		default:
			if err := play(); err != nil {
				return err
			}
			op, events = scriptLine{number, words}, nil
		}
	}
	return play()
}

// do does an operation.
func (s *traceScript) do(words []string) error {
	if (words[0] == "limits") != (s.rm == nil) {
		return errors.New("expected limits first, and once")
	}
	if words[0] == "limits" {
		return s.begin(strings.Join(words[1:], " "))
	}
	refused := words[len(words)-1] == "refused"
	if refused {
		words = words[:len(words)-1]
	}
	name := ""
	if len(words) > 2 && words[1] == "=" {
		name, words = words[0], words[2:]
	}
	scope, err, wrong := s.call(words[0], words[1:])
	switch {
	case wrong != nil:
		return wrong
	case refused && err == nil:
		return errors.New("it was not refused")
	case !refused && err != nil:
		return fmt.Errorf("it was refused: %w", err)
	case name != "" && scope == nil:
		return fmt.Errorf("%s makes no scope", words[0])
	case name != "":
		s.scopes[name] = scope
	}
	return nil
}

// begin makes upstream's manager.
func (s *traceScript) begin(limits string) error {
	var some upstream.PartialLimitConfig
	if err := json.Unmarshal([]byte(limits), &some); err != nil {
		return fmt.Errorf("limits: %w", err)
	}
	s.limiter = upstream.NewFixedLimiter(some.Build(upstream.InfiniteLimits))
	rm, err := upstream.NewResourceManager(s.limiter, upstream.WithTraceReporter(&s.theirs), upstream.WithMetricsDisabled())
	s.rm = rm
	return err
}

// call returns what a call of upstream's manager returned, and what is wrong with the line.
func (s *traceScript) call(function string, args []string) (scope network.ResourceScope, err, wrong error) {
	on, verb, isMethod := strings.Cut(function, ".")
	if !isMethod {
		verb = function
	}
	takes, ok := map[string][2]int{"OpenConnection": {1, 2}, "OpenStream": {2, 2}, "ViewService": {1, 1}, "SetPeer": {1, 1}, "SetProtocol": {1, 1},
		"SetService": {1, 1}, "BeginSpan": {}, "ReserveMemory": {2, 2}, "ReleaseMemory": {1, 1}, "Done": {}}[verb]
	switch {
	case !ok:
		return nil, nil, fmt.Errorf("unknown operation %s", verb)
	case len(args) < takes[0] || len(args) > takes[1]:
		return nil, nil, fmt.Errorf("%s needs %d words behind it, and has %d", verb, takes[0], len(args))
	case isMethod && s.scopes[on] == nil:
		return nil, nil, fmt.Errorf("no scope is called %s", on)
	}
	number := func(i, bits int) (n int) {
		u, err := strconv.ParseUint(args[i], 10, bits)
		if err != nil {
			wrong = err
		}
		return int(u)
	}
	direction := func(i int) network.Direction {
		switch args[i] {
		case "inbound":
			return network.DirInbound
		case "outbound":
			return network.DirOutbound
		}
		wrong = fmt.Errorf("%q is no direction", args[i])
		return 0
	}
	id := func(i int) peer.ID {
		p, err := peer.Decode(args[i])
		if err != nil {
			wrong = err
		}
		return p
	}
	type done interface{ Done() }
	fits := true
	switch at := s.scopes[on]; verb {
	case "OpenConnection":
		dir, fd := direction(0), len(args) == 2 && args[1] == "fd"
		if len(args) == 2 && !fd {
			wrong = fmt.Errorf("%q is not fd", args[1])
		}
		if wrong == nil {
			scope, err = s.rm.OpenConnection(dir, fd, multiaddr.StringCast("/ip4/127.0.0.1/tcp/1"))
		}
	case "OpenStream":
		if p, dir := id(0), direction(1); wrong == nil {
			scope, err = s.rm.OpenStream(p, dir)
		}
	case "ViewService":
		err = s.rm.ViewService(args[0], func(v network.ServiceScope) error { scope = v; return nil })
	case "SetPeer":
		var c network.ConnManagementScope
		if c, fits = at.(network.ConnManagementScope); fits {
			if p := id(0); wrong == nil {
				err = c.SetPeer(p)
			}
		}
	case "SetProtocol", "SetService":
		var st network.StreamManagementScope
		if st, fits = at.(network.StreamManagementScope); fits && verb == "SetProtocol" {
			err = st.SetProtocol(protocol.ID(args[0]))
		} else if fits {
			err = st.SetService(args[0])
		}
	case "Done":
		var d done
		if d, fits = at.(done); fits {
			d.Done()
		}
	default:
		if fits = at != nil; !fits {
			break
		}
		switch verb {
		case "BeginSpan":
			scope, err = at.BeginSpan()
		case "ReserveMemory":
			if size, priority := number(0, 31), number(1, 8); wrong == nil {
				err = at.ReserveMemory(size, uint8(priority))
			}
		case "ReleaseMemory":
			if size := number(0, 31); wrong == nil {
				at.ReleaseMemory(size)
			}
		}
	}
	if !fits {
		wrong = fmt.Errorf("%s has no %s", cmp.Or(on, "a manager"), verb)
	}
	return scope, err, wrong
}

// compare holds the events of upstream's manager since the last time against those of a
// script.
func (s *traceScript) compare(name string, number int, lines []scriptLine) error {
	defer func() { s.theirs = nil }()
	hand := &tracer{limits: LimiterFrom(s.limiter), max: 100, wake: make(chan struct{}, 1)}
	var from []scriptLine // of each event
	for _, line := range lines {
		if err := s.tell(hand, line.words); err != nil {
			return fmt.Errorf("%s:%d: %w", name, line.number, err)
		}
		for len(from) < len(hand.mu.queue) {
			from = append(from, line)
		}
	}
	if len(s.theirs) != len(hand.mu.queue) {
		return fmt.Errorf("%s:%d: upstream has %d events, expected %d", name, number, len(s.theirs), len(hand.mu.queue))
	}
	for i := range s.theirs {
		if err := s.compareEvent(&s.theirs[i], hand, i); err != nil {
			return fmt.Errorf("%s:%d: %w", name, from[i].number, err)
		}
	}
	return nil
}

// compareEvent returns an error if an event of upstream's is not, in JSON, the ith of a
// tracer of ours.
func (s *traceScript) compareEvent(their *upstream.TraceEvt, hand *tracer, i int) error {
	at, err := time.Parse(time.RFC3339Nano, their.Time)
	if err != nil {
		return err
	}
	hand.mu.queue[i].at = at.UnixNano()
	our := hand.export(&hand.mu.queue[i])
	text := func(v any) string {
		b, e := json.Marshal(v)
		err = cmp.Or(err, e)
		return string(b)
	}
	is, expected := text(their), text(our)
	switch {
	case our.Type == TraceStartEvt:
		// Upstream writes no limits at all.
		if none := fmt.Sprintf(`{"Time":%q,"Type":"start","Limit":{}}`, their.Time); is != none {
			return fmt.Errorf("upstream has %s, expected %s", is, none)
		}
		is = expected
	case upstream.IsSpan(their.Name):
		// Upstream takes the spans for part of the stream's number, or of the service's name.
		wrong := text(their.Scope)
		if strings.Contains(wrong, "Span") {
			return fmt.Errorf("upstream has the span in %s now", wrong)
		}
		is = strings.Replace(is, wrong, text(our.Scope), 1)
	}
	if err == nil && is != expected {
		err = fmt.Errorf("upstream has %s, expected %s", is, expected)
	}
	return err
}

// tell tells a tracer the event of a line.
func (s *traceScript) tell(to *tracer, words []string) error {
	if len(words) == 1 && words[0] == "start" {
		to.push(traceEvent{typ: TraceStartEvt})
		return nil
	}
	if len(words) < 2 {
		return errors.New("expected an event and a scope, or start")
	}
	name, limit, err := s.scope(words[1])
	if err != nil {
		return err
	}
	switch words[0] {
	case "created":
		to.created(name, limitsOf(limit))
		return nil
	case "destroyed":
		to.destroyed(name)
		return nil
	case "granted", "returned", "blocked":
	default:
		return fmt.Errorf("unknown event %s", words[0])
	}
	ask, use, ok := cutWords(words[2:], "->")
	if !ok {
		return errors.New("expected -> and what is held")
	}
	var short []string
	if words[0] == "blocked" {
		if ask, short, ok = cutWords(ask, "for"); !ok || len(short) != 1 {
			return errors.New("expected for and a limit")
		}
	}
	priority, items := uint8(network.ReservationPriorityAlways), []item(nil)
	for _, word := range ask {
		if text, ok := strings.CutPrefix(word, "priority="); ok {
			n, err := strconv.ParseUint(text, 10, 8)
			if err != nil {
				return err
			}
			priority = uint8(n)
			continue
		}
		it, err := amountOf(word)
		if err != nil {
			return err
		}
		items = append(items, it)
		if total, ok := map[dim]dim{dimConnsIn: dimConns, dimConnsOut: dimConns, dimStreamsIn: dimStreams, dimStreamsOut: dimStreams}[it.d]; ok {
			items = append(items, item{total, it.n})
		}
	}
	var held amounts
	if !slices.Equal(use, []string{"nothing"}) {
		for _, word := range use {
			it, err := amountOf(word)
			if err != nil {
				return err
			}
			held[it.d] = it.n
		}
	}
	switch r := requestFor(priority, items...); words[0] {
	case "granted":
		to.granted(name, r, &held)
	case "returned":
		to.returned(name, r, &held)
	default:
		it, err := amountOf(short[0] + "=0")
		if err != nil {
			return fmt.Errorf("%q is no amount", short[0])
		}
		to.blocked(name, r, it.d, &held)
	}
	return nil
}

// cutWords cuts a list at a word.
func cutWords(words []string, at string) (before, after []string, ok bool) {
	i := slices.Index(words, at)
	if i < 0 {
		return words, nil, false
	}
	return words[:i], words[i+1:], true
}

// amountOf reads an amount such as memory=10.
func amountOf(word string) (item, error) {
	name, text, _ := strings.Cut(word, "=")
	d, ok := map[string]dim{"memory": dimMemory, "fd": dimFD, "conns-in": dimConnsIn, "conns-out": dimConnsOut, "conns": dimConns,
		"streams-in": dimStreamsIn, "streams-out": dimStreamsOut, "streams": dimStreams}[name]
	n, err := strconv.ParseInt(text, 10, 64)
	if !ok || err != nil {
		return item{}, fmt.Errorf("%q is no amount", word)
	}
	return item{d, n}, nil
}

// scope returns the name and limit of a scope such as stream-1.span-1, or
// protocol:/p.peer:ID.
func (s *traceScript) scope(word string) (name scopeName, limit upstream.Limit, err error) {
	whole, spans := word, []uint32(nil)
	for {
		i := strings.LastIndex(word, ".span-")
		if i < 0 {
			break
		}
		n, e := strconv.ParseUint(word[i+len(".span-"):], 10, 32)
		err = cmp.Or(err, e)
		word, spans = word[:i], append(spans, uint32(n))
	}
	of, member, isMember := strings.Cut(word, ".peer:")
	kind, rest, _ := strings.Cut(of, ":")
	kind, number, numbered := strings.Cut(kind, "-")
	n := &name
	n.text = rest
	if numbered {
		num, e := strconv.ParseInt(number, 10, 64)
		err, n.num = cmp.Or(err, e), num
	}
	id := func(text string) peer.ID {
		p, e := peer.Decode(text)
		err = cmp.Or(err, e)
		return p
	}
	if isMember {
		n.peer = id(member)
	}
	switch l := s.limiter; {
	case word == "system":
		n.kind, limit = KindSystem, l.GetSystemLimits()
	case word == "transient":
		n.kind, limit = KindTransient, l.GetTransientLimits()
	case word == "allowlistedSystem":
		n.kind, limit = KindAllowlistedSystem, l.GetAllowlistedSystemLimits()
	case word == "allowlistedTransient":
		n.kind, limit = KindAllowlistedTransient, l.GetAllowlistedTransientLimits()
	case kind == "conn" && numbered:
		n.kind, limit = KindConn, l.GetConnLimits()
	case kind == "stream" && numbered:
		n.kind, limit = KindStream, l.GetStreamLimits("")
	case kind == "peer" && !isMember:
		n.kind, n.peer, n.text = KindPeer, id(rest), ""
		limit = l.GetPeerLimits(n.peer)
	case kind == "protocol" && isMember:
		n.kind, limit = KindProtocolPeer, l.GetProtocolPeerLimits(protocol.ID(rest))
	case kind == "protocol":
		n.kind, limit = KindProtocol, l.GetProtocolLimits(protocol.ID(rest))
	case kind == "service" && isMember:
		n.kind, limit = KindServicePeer, l.GetServicePeerLimits(rest)
	case kind == "service":
		n.kind, limit = KindService, l.GetServiceLimits(rest)
	default:
		err = errors.New("unknown")
	}
	if err != nil {
		return scopeName{}, nil, fmt.Errorf("%q is no scope", whole)
	}
	for _, seq := range slices.Backward(spans) {
		name = spanBelow(name, seq)
	}
	return name, limit, nil
}
