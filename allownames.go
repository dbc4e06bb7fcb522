package rcmgr

// Host names in the allowlist. Each name is looked up at intervals, and the addresses of its
// last answer are entries of the allowlist, which change in one step when the next answer
// comes. A failure changes nothing but what is shown and logged. A timer starts the lookups
// that are due, so there is no goroutine while none is running.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/multiformats/go-multiaddr"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// AllowlistResolver looks up host names. A *madns.Resolver of go-multiaddr-dns, such as
// madns.DefaultResolver, is one, and so is a swarm.ResolverFromMaDNS.
type AllowlistResolver interface {
	// Resolve looks up the host name in maddr, which is /dns/…, /dns4/…, /dns6/… or /dnsaddr/…
	// alone, or a /dnsaddr/… followed by /p2p/…. It returns the multiaddrs that the name stands
	// for, which may contain other host names. It must return when ctx ends. It is called by
	// several goroutines at a time, without locks.
	Resolve(ctx context.Context, maddr multiaddr.Multiaddr) ([]multiaddr.Multiaddr, error)
}

const (
	// nameInterval is the time between two lookups of a name unless the option sets another,
	// and leastNameInterval the least time. A failed lookup is repeated after the least time,
	// and again after twice as long each time, up to the time between two lookups.
	nameInterval      = 5 * time.Minute
	leastNameInterval = 10 * time.Second

	// mostNames is the greatest number of names, and mostNameEntries that of the entries that
	// one name stands for.
	mostNames       = 256
	mostNameEntries = 64
	// lookUpsAtOnce is the greatest number of lookups that run at once, besides those of
	// resolvers that did not return when their context ended.
	lookUpsAtOnce = 8
	// A lookup asks the resolver at most mostQuestions times, because the answer for a
	// dnsaddr may have names in it, which may have others, at most mostNested deep.
	mostQuestions = 32
	mostNested    = 4
	// A question may take questionTime, and all questions of a lookup together lookUpTime. If
	// the resolver has not returned hangTime later, the lookup goes on without an answer.
	questionTime = 10 * time.Second
	lookUpTime   = 30 * time.Second
	hangTime     = 5 * time.Second
)

// hostNames has the names of one allowlist. It implements nameKeeper.
type hostNames struct {
	resolver AllowlistResolver
	calling  guard
	list     *Allowlist
	every    time.Duration
	ctx      context.Context    // of all lookups
	cancel   context.CancelFunc // called with the lock held
	failures atomic.Uint64      // failed lookups
	workers  sync.WaitGroup     // the goroutines of lookups that are running

	mu      sync.Mutex // taken before the writer's lock of the list
	names   map[allowlistEntry]*hostName
	begun   bool        // lookups may start
	timer   *time.Timer // starts the lookup that is due next
	running int         // lookups, at most lookUpsAtOnce
	hung    int         // resolvers that have not returned although their context has ended
}

// hostName is an entry that is a name. The lock of hostNames guards it.
type hostName struct {
	entry    allowlistEntry
	added    int // how often it was added
	due      time.Time
	busy     bool             // it is being looked up
	hung     bool             // the resolver has not returned from the last lookup
	admits   []allowlistEntry // what the list has for it, in ascending order
	answered time.Time        // when the last whole answer came; zero if none has come
	failed   int              // failed lookups since then
	err      error            // of the last lookup
	leftOut  int              // parts of the last answer that are of no use
	why      error            // the reason for one of them
}

func newHostNames(r AllowlistResolver, every time.Duration, list *Allowlist) *hostNames {
	h := &hostNames{
		resolver: r, list: list, every: every, names: make(map[allowlistEntry]*hostName),
		calling: guard{callback: callbackOf("WithAllowlistResolver", r), then: "the lookup has failed, and is repeated later"},
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.timer = time.AfterFunc(every, h.look)
	h.timer.Stop()
	return h
}

// begin lets lookups start. h may be nil, as for end.
func (h *hostNames) begin() {
	if h != nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.begun = true
		h.startDue()
	}
}

// end cancels all lookups and waits for them, but not for resolvers that do not return.
func (h *hostNames) end() {
	if h != nil {
		h.mu.Lock()
		h.cancel()
		h.timer.Stop()
		h.mu.Unlock()
		h.workers.Wait()
	}
}

func (h *hostNames) any() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.names) > 0
}

// change adds or removes a name. The addresses of a name that is removed leave the list at
// once, and a name that is added is due at once.
func (h *hostNames) change(e allowlistEntry, delta int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := h.names[e]
	switch {
	case n == nil && delta < 0:
		return nil
	case n == nil && len(h.names) >= mostNames:
		return fmt.Errorf("the allowlist has %d host names already, which is the most that it takes", mostNames)
	case n == nil:
		n = &hostName{entry: e, due: time.Now()}
		h.names[e] = n
	}
	if n.added += delta; n.added == 0 {
		delete(h.names, e)
		h.list.replace(n.admits, nil)
	}
	h.startDue()
	return nil
}

func (h *hostNames) look() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.startDue()
}

// startDue starts the lookups that are due, as far as there may be more, and sets the timer
// for the next one. The end of a lookup calls it again. The lock is held.
func (h *hostNames) startDue() {
	for h.begun && h.ctx.Err() == nil && h.running < lookUpsAtOnce && h.hung < mostNames {
		var next *hostName
		for _, n := range h.names {
			if !n.busy && !n.hung && (next == nil || n.due.Before(next.due)) {
				next = n
			}
		}
		if next == nil {
			return
		}
		if wait := time.Until(next.due); wait > 0 {
			h.timer.Reset(wait)
			return
		}
		next.busy = true
		h.running++
		h.workers.Go(func() { h.learn(next, h.answerFor(next)) })
	}
}

// answerFor looks up a name. It returns without an answer if the manager is closed, or if the
// resolver does not return. Then the goroutine of the lookup stays behind, and the name is
// not looked up again before that goroutine has ended.
func (h *hostNames) answerFor(n *hostName) *lookUp {
	ctx, cancel := context.WithTimeout(h.ctx, lookUpTime)
	answer := make(chan *lookUp, 1)
	ended := false // guarded by h.mu
	go func() {
		l := &lookUp{names: h, ctx: ctx, err: errors.New("the resolver has ended its goroutine")}
		defer func() {
			cancel()
			h.mu.Lock()
			defer h.mu.Unlock()
			if ended = true; n.hung {
				n.hung = false
				h.hung--
				h.startDue()
			}
			answer <- l
		}()
		l.ask(n.entry, 0)
		l.err = l.failed
	}()
	giveUp := time.NewTimer(lookUpTime + hangTime)
	defer giveUp.Stop()
	select {
	case l := <-answer:
		return l
	case <-giveUp.C:
	case <-h.ctx.Done():
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !ended {
		n.hung = true
		h.hung++
	}
	return &lookUp{err: fmt.Errorf("the resolver has not returned after %v", lookUpTime+hangTime)}
}

// learn puts an answer in the place of the last one, and logs what has changed for the worse
// or the better.
func (h *hostNames) learn(n *hostName, l *lookUp) {
	l.finish()
	h.mu.Lock()
	n.busy = false
	h.running--
	if h.names[n.entry] != n || h.ctx.Err() != nil {
		h.startDue()
		h.mu.Unlock()
		return // the name was removed, or Close has ended the lookup
	}
	failing, lacking := n.err != nil, n.leftOut > 0
	admits, wait := l.found, h.every
	if n.err = l.err; l.err != nil {
		h.failures.Add(1)
		wait = min(wait, leastNameInterval<<min(n.failed, 16))
		n.failed++
		admits = withOthers(admits, n.admits)
	} else {
		n.answered, n.failed = time.Now(), 0
		n.leftOut, n.why = l.leftOut, l.why
	}
	if !slices.Equal(admits, n.admits) {
		h.list.replace(n.admits, admits)
		n.admits = admits
	}
	// A tenth more or less, so that many hosts do not ask at the same moment for ever.
	n.due = time.Now().Add(wait - wait/10 + rand.N(wait/5))
	leftOut, why := n.leftOut, n.why
	h.startDue()
	h.mu.Unlock()

	entry := slog.String("entry", n.entry.String())
	switch {
	case l.err != nil && !failing:
		// An error, because go-libp2p's loggers show no lower level by default.
		log.Error("cannot look up a host name of the allowlist: its last addresses stay", entry, "addresses", len(admits), "err", l.err)
	case l.err == nil && failing:
		log.Info("a host name of the allowlist is looked up again", entry, "addresses", len(admits))
	}
	if l.err == nil && leftOut > 0 && !lacking {
		log.Warn("the answer for a host name of the allowlist is used only in part", entry, "left_out", leftOut, "because", why)
	}
}

// withOthers adds those of the last entries that are missing, while there is room.
func withOthers(now, last []allowlistEntry) []allowlistEntry {
	for _, e := range last {
		if len(now) < mostNameEntries && !slices.Contains(now, e) {
			now = append(now, e)
		}
	}
	slices.SortFunc(now, compareEntries)
	return now
}

func compareEntries(a, b allowlistEntry) int {
	return cmp.Or(ip.ComparePrefixes(a.network, b.network), cmp.Compare(a.peer, b.peer))
}

// lookUp is one lookup of one name.
type lookUp struct {
	names     *hostNames
	ctx       context.Context
	questions int              // asked of the resolver
	found     []allowlistEntry // addresses, some with a peer
	failed    error            // the first question that has failed; the answer is then not whole
	leftOut   int              // parts of the answer that are of no use
	why       error            // the reason for the first of them

	err error // failed, or another reason for having no answer
}

func (l *lookUp) leave(part any, why error) {
	if l.leftOut++; l.leftOut == 1 {
		l.why = fmt.Errorf("%.200q: %w", part, why)
	}
}

// ask asks for a name, and for those that the answer names.
func (l *lookUp) ask(e allowlistEntry, depth int) {
	if depth > mostNested || l.questions >= mostQuestions {
		l.leave(e, fmt.Errorf("names are looked up at most %d deep, and %d in all", mostNested, mostQuestions))
		return
	}
	l.questions++
	err := l.ctx.Err() // a resolver may go on when its time is over
	var answers []multiaddr.Multiaddr
	if err == nil {
		answers, err = l.question(e)
	}
	if err != nil && l.failed == nil {
		l.failed = err
	}
	for _, ma := range answers {
		l.read(e, ma, depth)
	}
}

// question asks the resolver.
func (l *lookUp) question(e allowlistEntry) ([]multiaddr.Multiaddr, error) {
	asked := allowlistEntry{name: e.name}
	if e.isA("/dnsaddr/") {
		asked.peer = e.peer // a resolver may return no more than some of all peers
	}
	ma, err := multiaddr.NewMultiaddr(asked.String())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(l.ctx, questionTime)
	defer cancel()
	var answers []multiaddr.Multiaddr
	if fault := l.names.calling.try(func() { answers, err = l.names.resolver.Resolve(ctx, ma) }); fault != nil {
		err = fault
	}
	if err != nil {
		return nil, fmt.Errorf("%q: %w", asked, err)
	}
	return answers, nil
}

// read reads one multiaddr of the answer for a name. An entry that names a peer takes only
// addresses of that peer. Of an entry that names none, an answer that names a peer admits that
// peer alone. Whole networks are for the host's own entries, not for a name server to choose.
func (l *lookUp) read(e allowlistEntry, ma multiaddr.Multiaddr, depth int) {
	a, err := parseAllowlistEntry(ma)
	_, not6 := ma.ValueForProtocol(multiaddr.P_IP6)
	switch {
	case err != nil:
		l.leave(ma, err)
	case e.peer != "" && a.peer != e.peer && (a.peer != "" || e.isA("/dnsaddr/")):
		// It is another peer's address.
	case a.name == "" && !a.network.IsValid():
		l.leave(ma, errors.New("has no address"))
	case a.name == "" && !a.network.IsSingleIP():
		l.leave(ma, errors.New("is a network, and a host name stands for whole addresses"))
	case a.name == "" && e.isA("/dns4/") && !a.network.Addr().Is4():
		l.leave(ma, errors.New("is not an IPv4 address"))
	case a.name == "" && e.isA("/dns6/") && not6 != nil:
		l.leave(ma, errors.New("is not an IPv6 address"))
	default:
		if a.peer == "" {
			a.peer = e.peer
		}
		if a.name != "" {
			l.ask(a, depth+1)
		} else {
			l.found = append(l.found, a)
		}
	}
}

// isA reports whether the entry is a host name of a protocol.
func (e allowlistEntry) isA(protocol string) bool { return strings.HasPrefix(e.name, protocol) }

// finish brings what was found into the form in which a hostName keeps it.
func (l *lookUp) finish() {
	slices.SortFunc(l.found, compareEntries) // the same part of a long answer each time
	l.found = slices.Compact(l.found)
	if over := len(l.found) - mostNameEntries; over > 0 {
		l.leave(l.found[mostNameEntries], fmt.Errorf("a host name stands for at most %d addresses", mostNameEntries))
		l.leftOut += over - 1
		l.found = slices.Clip(l.found[:mostNameEntries])
	}
	if len(l.found) == 0 && l.err == nil {
		l.err = errors.New("the answer has no address for the allowlist")
		if l.why != nil {
			l.err = fmt.Errorf("%w: %w", l.err, l.why)
		}
	}
}

// AllowlistState shows the host names in the allowlist.
type AllowlistState struct {
	Names []AllowlistName // sorted by Entry
	// FailedLookUps counts the lookups of all names that have failed since the manager was
	// made.
	FailedLookUps uint64
}

// AllowlistName is a host name in the allowlist, and the result of its last lookups.
type AllowlistName struct {
	Entry string // such as "/dns4/example.com"
	// Admits lists the entries for which the name stands now, such as "/ip4/192.0.2.1". If the
	// last lookup has failed, they may be out of date.
	Admits []string
	// Answered is when the last whole answer came. It is zero if none has come yet.
	Answered time.Time `json:",omitzero"`
	// Failed counts the lookups that have failed since then, and Err is the error of the last
	// lookup. They are zero if it has not failed.
	Failed int    `json:",omitempty"`
	Err    string `json:",omitempty"`
	// LeftOut counts the parts of the last whole answer that are of no use, such as relayed
	// addresses and those beyond the first 64, and WhyLeftOut is the reason for one of them.
	LeftOut    int    `json:",omitempty"`
	WhyLeftOut string `json:",omitempty"`
}

// state returns the names as they are now. h may be nil.
func (h *hostNames) state() (s AllowlistState) {
	if h == nil {
		return s
	}
	h.mu.Lock()
	for _, n := range h.names {
		state := AllowlistName{Entry: n.entry.String(), Answered: n.answered, Failed: n.failed, LeftOut: n.leftOut}
		for _, e := range n.admits {
			state.Admits = append(state.Admits, e.String())
		}
		if n.err != nil {
			state.Err = n.err.Error()
		}
		if n.why != nil {
			state.WhyLeftOut = n.why.Error()
		}
		s.Names = append(s.Names, state)
	}
	h.mu.Unlock()
	slices.SortFunc(s.Names, func(a, b AllowlistName) int { return cmp.Compare(a.Entry, b.Entry) })
	s.FailedLookUps = h.failures.Load()
	return s
}

// tally counts the names that have had no answer yet, those that have, and those whose last
// lookup has failed, and returns AllowlistState.FailedLookUps. h may be nil.
func (h *hostNames) tally() (waiting, answered, failing int, failures uint64) {
	if h == nil {
		return 0, 0, 0, 0
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, n := range h.names {
		switch {
		case n.err != nil:
			failing++
		case n.answered.IsZero():
			waiting++
		default:
			answered++
		}
	}
	return waiting, answered, failing, h.failures.Load()
}
