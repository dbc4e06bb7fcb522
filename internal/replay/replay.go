package replay

// A story, replayed to a manager with other limits. Whatever the manager refuses does not
// go on: a connection or stream that is refused, or cannot move, is closed, and so are
// the streams of a peer that has no connection left.

import (
	"cmp"
	"container/heap"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/internal/text"
)

// Tally counts requests of one kind by two decisions: that of the manager that wrote the
// trace, and that of the limits that are tried.
type Tally struct {
	StillAdmitted, NowRefused, NowAdmitted, StillRefused int
	NotAsked                                             int // requests of connections and streams that were not admitted
}

// Answers has the decisions of other limits on a story.
type Answers struct {
	Tallies  map[string]*Tally
	Refusers map[Refuser]int // of requests that the trace admitted
	State    rcmgr.Snapshot  // after the last step
}

// Refuser is a scope that refused, and the resource.
type Refuser struct {
	Scope, What string
	Key         string // the place of the limit in the configuration
}

// MarshalJSON writes the numbers of requests by kind, and the refusers, those that refused
// most first.
func (a *Answers) MarshalJSON() ([]byte, error) {
	type refusals struct {
		Refuser
		Times int
	}
	out := struct {
		Requests map[string]*Tally
		Refusers []refusals
	}{Requests: a.Tallies, Refusers: []refusals{}}
	for _, r := range a.ByRefusals() {
		out.Refusers = append(out.Refusers, refusals{r, a.Refusers[r]})
	}
	return json.Marshal(out)
}

// NowRefused returns how many requests that the trace admitted are refused.
func (a *Answers) NowRefused() (n int) {
	for _, c := range a.Tallies {
		n += c.NowRefused
	}
	return n
}

// ByRefusals returns what refuses, those that refuse most first.
func (a *Answers) ByRefusals() []Refuser {
	return slices.SortedFunc(maps.Keys(a.Refusers), func(x, y Refuser) int {
		return cmp.Or(cmp.Compare(a.Refusers[y], a.Refusers[x]), cmp.Compare(x.Scope, y.Scope), cmp.Compare(x.What, y.What))
	})
}

// held is the scope of an item, and what it holds.
type held struct {
	scope  network.ResourceScopeSpan
	bytes  int64
	placed bool // a connection that has its peer
	guest  bool // the trace refused its move, so its end comes too early
}

type teller struct {
	rm      *rcmgr.Manager
	now     Answers
	held    map[*item]*held
	conns   map[string]int // connections of each peer now
	was     map[string]int // connections of each peer in the trace
	typical map[string]map[network.Direction]typical
	guests  guests
	strange int // peers that the trace does not name, so far
}

// allowlisted is an address on the allowlist. Other connections have no address.
const allowlisted = "/ip4/127.0.0.1/tcp/1"

// Replay makes the requests of the story to a manager with other limits.
func (s *Story) Replay(limits rcmgr.ConcreteLimitConfig, admission rcmgr.Admission) (*Answers, error) {
	rm, err := rcmgr.New(rcmgr.NewFixedLimiter(limits), rcmgr.WithAdmission(admission), rcmgr.WithStripes(1),
		rcmgr.WithRefusalLog(0), rcmgr.WithMetricsDisabled(), rcmgr.WithAllowlistStrings([]string{"/ip4/127.0.0.1"}, false))
	if err != nil {
		return nil, err
	}
	defer rm.Close()
	t := &teller{rm: rm, held: make(map[*item]*held), conns: make(map[string]int), was: make(map[string]int),
		now:     Answers{Tallies: make(map[string]*Tally), Refusers: make(map[Refuser]int)},
		typical: map[string]map[network.Direction]typical{"conn": s.typicals("conn"), "stream": s.typicals("stream")},
	}
	for _, st := range s.steps {
		t.guests.until(st.at)
		t.tell(st)
	}
	t.now.State = rm.Snapshot()
	return &t.now, nil
}

// tell makes the request of a step.
func (t *teller) tell(st *step) {
	it := st.it
	h := t.held[it]
	switch st.do {
	case openConn, openStream, openSpan:
		t.open(st)
		return
	case release:
		if h != nil {
			n := min(st.bytes, h.bytes) // some may have been refused
			h.scope.ReleaseMemory(int(n))
			h.bytes -= n
		}
		return
	case done:
		if it.class == "conn" && it.attached {
			t.was[it.peer]--
		}
		if h != nil && h.guest {
			life := t.typical[it.class][it.dir].life
			heap.Push(&t.guests, guest{it.from.Add(life), func() { t.close(it) }})
			return
		}
		t.close(it)
		return
	case setPeer:
		if !st.refused {
			t.was[st.name]++
		}
	}
	what := st.what()
	if it.class == "scope" {
		t.count(st, what, t.reserveAt(st))
		return
	}
	if h == nil {
		t.tally(what).NotAsked++
		return
	}
	var err error
	switch st.do {
	case setPeer:
		err = h.scope.(network.ConnManagementScope).SetPeer(peerID(st.name))
		if err == nil {
			h.placed = true
			t.conns[st.name]++
			it.peer = st.name
		}
	case setProtocol:
		err = h.scope.(network.StreamManagementScope).SetProtocol(protocol.ID(st.name))
	case setService:
		err = h.scope.(network.StreamManagementScope).SetService(st.name)
	case reserve:
		if err = h.scope.ReserveMemory(int(st.bytes), st.priority); err == nil {
			h.bytes += st.bytes
			if st.refused { // the trace does not release it
				h.scope.ReleaseMemory(int(st.bytes))
				h.bytes -= st.bytes
			}
		}
	}
	t.count(st, what, err)
	if st.do != reserve {
		h.guest = st.refused
		if err != nil {
			t.close(it)
		}
	}
}

func (t *teller) open(st *step) {
	it, what := st.it, st.what()
	if it.class == "stream" && it.peer != "" && t.was[it.peer] > 0 && t.conns[it.peer] == 0 {
		t.tally(what).NotAsked++ // its connection was refused
		return
	}
	var scope network.ResourceScopeSpan
	var err error
	switch it.class {
	case "conn":
		var endpoint multiaddr.Multiaddr
		if it.allowlisted {
			endpoint = multiaddr.StringCast(allowlisted)
		}
		scope, err = t.rm.OpenConnection(it.dir, it.fd, endpoint)
	case "stream":
		scope, err = t.rm.OpenStream(peerID(cmp.Or(it.peer, t.stranger())), it.dir)
	case "span":
		err = t.at(&it.scope, func(at network.ResourceScope) (err error) {
			scope, err = at.BeginSpan()
			return err
		})
	}
	if it.class != "span" {
		t.count(st, what, err)
	}
	if err != nil {
		return
	}
	t.held[it] = &held{scope: scope}
	if st.refused {
		t.guestOf(st)
	}
}

// close ends an item, if it is open.
func (t *teller) close(it *item) {
	h := t.held[it]
	if h == nil {
		return
	}
	h.scope.Done()
	delete(t.held, it)
	if h.placed {
		t.conns[it.peer]--
	}
}

// stranger returns a peer that holds nothing else.
func (t *teller) stranger() string {
	t.strange++
	return "stranger " + strconv.Itoa(t.strange)
}

// peerID returns the peer ID with this text. Text that is not a peer ID is used as one.
func peerID(text string) peer.ID {
	if id, err := peer.Decode(text); err == nil {
		return id
	}
	return peer.ID(text)
}

// at calls f with a shared scope.
func (t *teller) at(c *Class, f func(network.ResourceScope) error) error {
	switch c.Class {
	case "system":
		return t.rm.ViewSystem(f)
	case "transient":
		return t.rm.ViewTransient(f)
	case "allowlistedSystem":
		return t.rm.ViewAllowlistedSystem(f)
	case "allowlistedTransient":
		return t.rm.ViewAllowlistedTransient(f)
	case "peer", "protocol-peer", "service-peer": // there is no view of one peer in a protocol or service
		return t.rm.ViewPeer(peerID(c.Peer), func(s network.PeerScope) error { return f(s) })
	case "protocol":
		return t.rm.ViewProtocol(protocol.ID(c.Protocol), func(s network.ProtocolScope) error { return f(s) })
	case "service":
		return t.rm.ViewService(c.Service, func(s network.ServiceScope) error { return f(s) })
	}
	return fmt.Errorf("no such class of scopes: %q", c.Class)
}

// reserveAt reserves memory at the scope that refused it, and releases it at once.
func (t *teller) reserveAt(st *step) error {
	return t.at(&st.it.scope, func(at network.ResourceScope) error {
		err := at.ReserveMemory(int(st.bytes), st.priority)
		if err == nil {
			at.ReleaseMemory(int(st.bytes))
		}
		return err
	})
}

// guest is the next step of a connection or stream that the trace refused and other
// limits admit.
type guest struct {
	at   time.Time
	then func()
}

// guests has the steps of all guests, the earliest first, by the clock of the trace.
type guests []guest

func (g guests) Len() int           { return len(g) }
func (g guests) Less(i, j int) bool { return g[i].at.Before(g[j].at) }
func (g guests) Swap(i, j int)      { g[i], g[j] = g[j], g[i] }
func (g *guests) Push(x any)        { *g = append(*g, x.(guest)) }
func (g *guests) Pop() any {
	last := (*g)[len(*g)-1]
	*g = (*g)[:len(*g)-1]
	return last
}

// until takes all steps that are due.
func (g *guests) until(now time.Time) {
	for len(*g) > 0 && !(*g)[0].at.After(now) {
		due := heap.Pop(g).(guest)
		due.then()
	}
}

// guestOf schedules the steps of a connection or stream that the trace refused.
func (t *teller) guestOf(st *step) {
	it := st.it
	usual := t.typical[it.class][it.dir]
	heap.Push(&t.guests, guest{st.at.Add(usual.wait), func() {
		h := t.held[it]
		if h == nil {
			return
		}
		var err error
		switch scope := h.scope.(type) {
		case network.ConnManagementScope:
			err = scope.SetPeer(peerID(t.stranger()))
		case network.StreamManagementScope:
			err = scope.SetProtocol("(unknown)")
		}
		if err != nil {
			t.close(it)
		}
	}})
	heap.Push(&t.guests, guest{st.at.Add(max(usual.wait, usual.life)), func() { t.close(it) }})
}

// what returns the kind of a request.
func (st *step) what() string {
	dir := "inbound "
	if st.it.dir != network.DirInbound {
		dir = "outbound "
	}
	switch st.do {
	case openConn:
		return dir + "connection"
	case openStream:
		return dir + "stream"
	case setPeer:
		return "connection to its peer"
	case setProtocol:
		return "stream to its protocol"
	case setService:
		return "stream to its service"
	}
	return "memory"
}

func (t *teller) tally(what string) *Tally {
	if t.now.Tallies[what] == nil {
		t.now.Tallies[what] = new(Tally)
	}
	return t.now.Tallies[what]
}

func (t *teller) count(st *step, what string, err error) {
	c := t.tally(what)
	switch {
	case st.refused && err != nil:
		c.StillRefused++
	case st.refused:
		c.NowAdmitted++
	case err == nil:
		c.StillAdmitted++
	default:
		c.NowRefused++
		by := Refuser{What: err.Error()}
		var why *rcmgr.LimitError
		if errors.As(err, &why) {
			by = Refuser{nameOf(why), why.Resource().String(), why.ConfigKey()}
			if d := why.Direction(); d != network.DirUnknown {
				by.What = fmt.Sprintf("%s %s", map[network.Direction]string{network.DirInbound: "inbound", network.DirOutbound: "outbound"}[d], by.What)
			}
		}
		t.now.Refusers[by]++
	}
}

// nameOf returns the name of the scope that refused, with one name for a scope and its
// spans, and one for all connections or streams.
func nameOf(why *rcmgr.LimitError) string {
	if k := why.Kind(); k == rcmgr.KindConn || k == rcmgr.KindStream {
		return k.String()
	}
	return strings.TrimSuffix(why.Scope(), spanEnd.FindString(why.Scope()))
}

// Plan is a set of limits to try.
type Plan struct {
	Name   string
	Limits rcmgr.ConcreteLimitConfig
}

// PlanOf returns the limits of a node, with the overrides of a file unless its name is empty.
func PlanOf(node rcmgr.NodeLimits, file string) (Plan, error) {
	p := Plan{Name: cmp.Or(file, "computed limits")}
	var err error
	if file != "" {
		if node.Overrides, err = rcmgr.ReadLimitsFile(file); err != nil {
			return p, err
		}
	}
	p.Limits, err = node.Build()
	return p, err
}

// Report writes the answers as tables, each list with as many lines as top says. Names of scopes
// are shortened so that the tables fit a width; 0 leaves them as they are. Report returns the
// error of out, if any.
func (a *Answers) Report(out io.Writer, name string, top, width int) error {
	fmt.Fprintf(out, "\n%s\n\n", name)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "What\tadmitted\tnow refused\tnow admitted\trefused\tnot asked")
	for _, what := range slices.Sorted(maps.Keys(a.Tallies)) {
		c := a.Tallies[what]
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\n", what, c.StillAdmitted, c.NowRefused, c.NowAdmitted, c.StillRefused, c.NotAsked)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(a.Refusers) > 0 {
		fmt.Fprint(out, "\nWho refuses what was admitted\n\n")
		fmt.Fprintln(w, "Scope\tWhat\tTimes")
		by := a.ByRefusals()
		for _, r := range by[:min(top, len(by))] {
			fmt.Fprintf(w, "%s\t%s\t%d\n", nameWithin(r.Scope, width, len("  outbound connection  1000000")), r.What, a.Refusers[r])
		}
		if left := len(by) - top; left > 0 {
			fmt.Fprintf(w, "and %d more\n", left)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return a.reportPeaks(out, w, top, width)
}

// reportPeaks writes the limits that came nearest to being full.
func (a *Answers) reportPeaks(out io.Writer, w *tabwriter.Writer, top, width int) error {
	share := func(u rcmgr.LimitUse) float64 { return float64(u.Peak) / float64(u.Limit) * 100 }
	all := slices.DeleteFunc(a.State.LimitUses(), func(u rcmgr.LimitUse) bool {
		_, limited := u.Percent()
		return !limited || share(u) < 50 // below half, peaks are not exact
	})
	slices.SortStableFunc(all, func(x, y rcmgr.LimitUse) int { return cmp.Compare(share(y), share(x)) })
	if len(all) == 0 {
		return nil
	}
	fmt.Fprint(out, "\nHighest use, where it was half of a limit or more\n\n")
	fmt.Fprintln(w, "Scope\tLimit\tOf\tHighest use\tPercent")
	for _, u := range all[:min(top, len(all))] {
		of, peak := amount(u.Name, u.Limit), amount(u.Name, u.Peak)
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.1f%%\n", nameWithin(u.Scope, width, len("  StreamsOutbound  1000.0 MiB  1000.0 MiB  100.0%")), u.Name, of, peak, share(u))
	}
	return w.Flush()
}

// amount returns an amount of what a limit is on.
func amount(limit string, n int64) string {
	if limit == "Memory" {
		return text.Bytes(n)
	}
	return text.Count(n)
}

// nameWithin returns the name of a scope so short that a line of a width has room for others
// beside it. 0 is no bound.
func nameWithin(name string, width, others int) string {
	name = text.Printable(name)
	if width == 0 {
		return name
	}
	return text.Shorten(name, max(16, width-others))
}
