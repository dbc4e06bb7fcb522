// Package letgo lets connections and streams go when a host is full. It learns what is short,
// walks the connections of the hosts, lets internal/evict choose, and closes the chosen ones.
// Limits and accounts are behind a few functions.
//
// The way from a scope back to its connection needs no register: a connection and a stream of
// go-libp2p have their scopes, so victims are found from the side of the host.
package letgo

import (
	"context"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	"golang.org/x/time/rate"

	"github.com/weir-p2p/rcmgr/internal/evict"
	"github.com/weir-p2p/rcmgr/internal/ip"
)

// Host is what is needed of a host.
type Host interface {
	Network() network.Network
	ConnManager() connmgr.ConnManager
}

// Handshake is a connection of which no network.Conn is there yet.
type Handshake interface {
	Scope() network.ConnManagementScope
	RemoteMultiaddr() multiaddr.Multiaddr
	Began() time.Time
	// End closes the connection, and reports whether its handshake was still going on. If it was
	// not, End does nothing.
	End() bool
}

// Config says how room is made.
type Config struct {
	Group     func(netip.Addr) string // nil: the host cannot tell owners
	Protocols []protocol.ID
	PerSecond int  // closings
	Observe   bool // nothing is closed
	ByHand    bool // closings happen in Pass, and nothing happens between two calls of it
	Now       func() time.Time
	Seed      uint64
}

// Engine is what is needed of the resource manager. All functions are called without locks.
// Own and Config.Group may run code of the program, so they are called by way of Try alone.
type Engine struct {
	// Facts returns what is known of the scope of a connection or stream, and whether it is one
	// that this manager has and that is not done.
	Facts func(network.ResourceScope) (Facts, bool)
	// Own returns the manager's own scope behind those that a program has put around it.
	Own func(network.ResourceScope) network.ResourceScope
	// Lacks takes what is short, and returns it. Again puts back what still is.
	Lacks func() []Lack
	Again func(Lack)
	// Locate returns the place of an address.
	Locate func(multiaddr.Multiaddr) Place
	// Try calls f, which runs code of the program, and reports whether it returned. what is the
	// name of that code.
	Try func(what string, f func()) bool
	// Gone is called for each connection and stream that has been let go.
	Gone func(Victim)
	Log  *slog.Logger
}

// Facts is what the manager knows of one connection or stream.
type Facts struct {
	Num         int64  // no other connection or stream ever has it
	In          [3]any // the shared scopes in which it counts; unused places are nil
	Counts      uint8  // the dimensions in which it counts as one, as bits
	Memory      int64  // that is free when it has gone
	Streams     int64  // of a connection: the streams of its peer, divided among its connections
	Outbound    bool
	Allowlisted bool
	Waiting     bool // it is a stream that has no protocol yet
}

// weight returns by how much a lack shrinks when the connection or stream goes.
func (f *Facts) weight(l *Lack) int64 {
	if l.Each > 0 {
		return l.Each * (1 + f.Streams)
	}
	for _, in := range f.In {
		if in != nil && in == l.In {
			if l.Memory {
				return f.Memory
			}
			return int64(f.Counts >> l.Dim & 1)
		}
	}
	return 0
}

// Lack is a resource that is short.
type Lack struct {
	In       any          // the shared scope
	Dim      uint8        // of what
	Need     func() int64 // how much, now
	Kind     uint8        // of the scope
	Scope    string
	Limit    string // its name
	Memory   bool   // Dim is memory
	Streams  bool   // streams are to go, not connections
	Shaking  bool   // of connections, only those that shake hands are in the scope
	Waiting  bool   // all in the scope wait for something: the oldest go first
	Outbound bool   // the host's own go, once they have waited for long
	Observed bool   // the limit is only observed: nothing is to be closed

	// Each is for memory that nobody has reserved, so that it is not known which connections hold
	// it: how much each connection and each stream is taken to hold. It is 0 for all else. Need
	// shows what has become free only when all that was to go has gone, and Went, if it is not
	// nil, is told how much that is taken to have held.
	Each int64
	Went func(weight int64)
}

// Place is the place of an address.
type Place struct {
	Addr  netip.Addr // of the peer, or of the relay before it; invalid if it has none
	Relay string     // the relay, if the peer is behind one
	Local bool       // it is the machine's own, which says nothing of the peer
}

// Victim is a connection or stream that is, or would be, let go.
type Victim struct {
	Num    int64
	Peer   peer.ID
	Kind   uint8 // of the scope that is full
	Scope  string
	Limit  string
	Stream bool
	Reason evict.Reason
	Group  string // that holds most beside its share
	At     time.Time
}

const (
	mostAtOnce  = 256 // victims of a pass
	mostLooked  = 8192
	mostClosing = 64               // closings at the same time
	patience    = time.Second      // until a connection counts as one that stays open though it was closed
	grace       = 10 * time.Second // in which a connection need have no stream
	leastGrace  = time.Second      // if most of the others are younger; so long, others of a group go first
	hungAfter   = 3 * time.Second  // an outbound stream that has no protocol yet
	longestName = 64               // of a group, in bytes
)

// Room makes room. Use New to make one.
type Room struct {
	Config
	engine Engine
	named  map[protocol.ID]bool
	secret ip.Hash
	budget *rate.Limiter
	slots  chan struct{} // closings that run
	pass   sync.Mutex    // held while room is made; code of the program runs meanwhile

	mu struct {
		sync.Mutex
		hosts  []*attached
		shake  []*shaking
		going  map[int64]*going
		passes uint64
		hung   bool // see hangs
		state  State
	}
}

// attached is a host.
type attached struct {
	Host
	from atomic.Int64 // where the next look at its connections begins, if there are very many
}

// shaking is where handshakes are found.
type shaking struct{ all iter.Seq[Handshake] }

// going is a connection or stream that was let go and is not gone yet, or that would have been
// let go and is still there.
type going struct {
	Victim
	scope network.ResourceScope
	since time.Time
	would bool // it was not closed
	stays bool // it was closed, and is still open
}

// New returns a Room without hosts.
func New(c Config, e Engine) *Room {
	r := &Room{Config: c, engine: e, named: make(map[protocol.ID]bool), slots: make(chan struct{}, mostClosing)}
	for _, p := range c.Protocols {
		r.named[p] = true
	}
	if r.Seed == 0 {
		r.Seed = rand.Uint64()
	}
	if r.Now == nil {
		r.Now = time.Now
	}
	secret := rand.New(rand.NewPCG(r.Seed, 0))
	r.secret = ip.Hash{A: secret.Uint64(), B: secret.Uint64()}
	r.budget = rate.NewLimiter(rate.Limit(c.PerSecond), max(1, c.PerSecond/4))
	r.mu.going = make(map[int64]*going)
	r.mu.state.init()
	return r
}

// Attach adds a host. The function that it returns removes the host again.
func (r *Room) Attach(h Host) (detach func()) { return attach(r, &r.mu.hosts, &attached{Host: h}) }

// AttachHandshakes adds handshakes that may be ended. The function that it returns removes them
// again.
func (r *Room) AttachHandshakes(all iter.Seq[Handshake]) (detach func()) {
	return attach(r, &r.mu.shake, &shaking{all})
}

// attach adds one to a list, which others may be reading.
func attach[T comparable](r *Room, list *[]T, one T) (detach func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*list = append(slices.Clip(*list), one)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		*list = slices.DeleteFunc(slices.Clone(*list), func(other T) bool { return other == one })
	}
}

// Outcome is what a pass has left to do.
type Outcome struct {
	LetGo int
	// Later means that something is still short, and that there may soon be room: closings are
	// under way, or the pass has reached its bound. Barren means that all that is left is kept.
	Later, Barren bool
}

// Pass lets connections and streams go until nothing is short, or nothing more may go.
func (r *Room) Pass() (o Outcome) {
	r.pass.Lock()
	defer r.pass.Unlock()
	now := r.Now()
	r.settle(now)
	var seen *view
	for _, l := range r.engine.Lacks() {
		// What goes meanwhile counts twice, so that nothing is let go without need. The next pass
		// makes up for it.
		coming := r.expected(&l)
		if coming > 0 && l.Each > 0 {
			r.later(&l, &o)
			continue
		}
		need := l.Need()
		if need <= 0 {
			continue
		}
		if need -= coming; need <= 0 || !r.onlyWatches(&l) && r.hangs() {
			r.later(&l, &o)
			continue
		}
		if seen == nil || !seen.has(l.sight()) {
			seen = r.look(now, l.sight())
		}
		n, missing := r.meet(&l, need, seen, now)
		o.LetGo += n
		if n == 0 && missing {
			o.Barren = true
			r.noteOnlyKept(&l)
			continue
		}
		r.later(&l, &o)
	}
	return o
}

// later leaves a lack to the next pass, unless nothing is closed for it.
func (r *Room) later(l *Lack, o *Outcome) {
	if !r.onlyWatches(l) {
		r.engine.Again(*l)
		o.Later = true
	}
}

// hangs reports whether so many closings are under way that no other can begin. If they have been
// for long, that is a fault.
func (r *Room) hangs() bool {
	full := len(r.slots) == cap(r.slots)
	r.mu.Lock()
	defer r.mu.Unlock()
	if hung := full && r.mu.state.StayOpen >= cap(r.slots); hung != r.mu.hung {
		if r.mu.hung = hung; hung {
			r.mu.state.Faults[Hung]++
		}
	}
	return full
}

// onlyWatches reports whether nothing is to be closed for a lack.
func (r *Room) onlyWatches(l *Lack) bool { return r.Observe || l.Observed }

// meet lets connections or streams go for one lack. missing reports whether more are needed than
// may go.
func (r *Room) meet(l *Lack, need int64, seen *view, now time.Time) (n int, missing bool) {
	list, choice := r.choose(l, need, seen, now)
	r.noteKept(choice.Kept)
	for _, v := range choice.Victims {
		f := list[v.Index]
		if r.onlyWatches(l) {
			r.noteWould(f, f.victim(l, v, seen, now))
			n++
			continue
		}
		if !r.budget.AllowN(now, 1) {
			return n, false
		}
		if !r.close(f, f.victim(l, v, seen, now)) {
			return n, false
		}
		if n++; l.Went != nil {
			l.Went(f.weight(l))
		}
	}
	return n, choice.Weight < need && len(choice.Victims) < mostAtOnce
}

// choose chooses victims for a lack.
func (r *Room) choose(l *Lack, need int64, seen *view, now time.Time) ([]*found, evict.Choice) {
	var list []*found
	var all []evict.Candidate
	goes, median := r.goes(l), seen.median()
	for _, f := range seen.found {
		w := f.weight(l)
		if w <= 0 || (f.stream != nil) != l.Streams || goes[f.Num] {
			continue
		}
		c := f.candidate
		c.Weight = w
		c.Keep = f.keep(l, now)
		c.Idle = f.idle(l, now, median)
		c.New = !l.Waiting && f.fresh(now) // of those that wait, the oldest go anyway
		c.Unproven = f.shakes != nil
		list = append(list, f)
		all = append(all, c)
	}
	order := evict.YoungestFirst
	if l.Waiting {
		order = evict.OldestFirst
	}
	return list, evict.Choose(all, evict.Want{Weight: need, Most: mostAtOnce, Order: order, Groups: seen.groups.Len()})
}

// WouldGo returns what would be let go next for a lack, at most n.
func (r *Room) WouldGo(l Lack, n int) (victims []Victim) {
	now := r.Now()
	seen := r.look(now, l.sight())
	list, choice := r.choose(&l, max(1, l.Need()), seen, now)
	for _, v := range choice.Victims[:min(n, len(choice.Victims))] {
		victims = append(victims, list[v.Index].victim(&l, v, seen, now))
	}
	return victims
}

// close closes a connection or resets a stream, and reports whether it could begin to.
func (r *Room) close(f *found, v Victim) bool {
	select {
	case r.slots <- struct{}{}:
	default:
		return false
	}
	g := &going{Victim: v, scope: f.scope, since: v.At}
	r.mu.Lock()
	r.mu.going[v.Num] = g
	r.mu.state.Closing++
	r.mu.Unlock()
	if r.ByHand {
		r.end(f, g)
	} else {
		go r.end(f, g)
	}
	return true
}

// end closes what is to go. It runs in a goroutine of its own, because the other side, or the
// program, may make it take long.
func (r *Room) end(f *found, g *going) {
	if _, live := r.engine.Facts(f.scope); !live {
		<-r.slots
		r.forget(g, false) // it has gone by itself
		return
	}
	done := false
	ok := r.engine.Try("closing a "+g.what(), func() {
		switch {
		case f.stream != nil:
			_ = f.stream.ResetWithError(network.StreamResourceLimitExceeded)
		case f.shakes != nil:
			done = !f.shakes.End()
		default:
			_ = f.conn.CloseWithError(network.ConnResourceLimitExceeded)
		}
	})
	<-r.slots
	if done {
		r.forget(g, false) // it has become a connection that is in use
		return
	}
	if !ok {
		r.noteFault(Panicked)
	}
	if _, live := r.engine.Facts(f.scope); !live {
		r.forget(g, true)
	}
}

func (v *Victim) what() string {
	if v.Stream {
		return "stream"
	}
	return "connection"
}

// Name returns the name of the scope of what is let go, such as "conn-17".
func (v *Victim) Name() string {
	if v.Stream {
		return "stream-" + strconv.FormatInt(v.Num, 10)
	}
	return "conn-" + strconv.FormatInt(v.Num, 10)
}

// forget removes what has gone. It counts as let go unless it had gone by itself.
func (r *Room) forget(g *going, letGo bool) {
	r.mu.Lock()
	known := r.mu.going[g.Num] == g
	if known {
		delete(r.mu.going, g.Num)
		switch {
		case g.would:
		case g.stays:
			r.mu.state.StayOpen--
		default:
			r.mu.state.Closing--
		}
		if letGo {
			r.mu.state.letGo(&g.Victim)
		}
	}
	r.mu.Unlock()
	if known && letGo {
		r.engine.Gone(g.Victim)
		r.log(&g.Victim)
	}
}

// settle forgets what has gone, and waits no longer for what was closed long ago and is still
// open.
func (r *Room) settle(now time.Time) {
	r.mu.Lock()
	list := make([]*going, 0, len(r.mu.going))
	for _, g := range r.mu.going {
		list = append(list, g)
	}
	r.mu.Unlock()
	for _, g := range list {
		if _, live := r.engine.Facts(g.scope); !live {
			r.forget(g, !g.would)
			continue
		}
		r.mu.Lock()
		if late := now.Sub(g.since) >= patience; late && !g.would && !g.stays && r.mu.going[g.Num] == g {
			g.stays = true
			r.mu.state.Closing--
			r.mu.state.StayOpen++
			r.mu.state.Faults[StaysOpen]++
		}
		r.mu.Unlock()
	}
}

// expected returns how much of a lack will be made good by what is going. What would only have
// been let go counts as gone, so that it is counted once. For the memory of the process, only what
// goes because of that counts.
func (r *Room) expected(l *Lack) (sum int64) {
	r.mu.Lock()
	list := make([]*going, 0, len(r.mu.going))
	for _, g := range r.mu.going {
		if !g.stays && (!g.would || r.onlyWatches(l)) && (l.Each == 0 || g.Kind == l.Kind) {
			list = append(list, g)
		}
	}
	r.mu.Unlock()
	for _, g := range list {
		if f, live := r.engine.Facts(g.scope); live {
			sum += f.weight(l)
		}
	}
	return sum
}

// goes returns the numbers of what was let go and is still there. What would only have been let go
// is among it as far as that counts for a lack, as in expected.
func (r *Room) goes(l *Lack) map[int64]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	nums := make(map[int64]bool, len(r.mu.going))
	for num, g := range r.mu.going {
		if !g.would || r.onlyWatches(l) {
			nums[num] = true
		}
	}
	return nums
}

// log logs at level debug what was let go. The manager's log sums it up.
func (r *Room) log(v *Victim) {
	if !r.engine.Log.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	r.engine.Log.Debug("let go to make room", "what", v.Name(), "peer", v.Peer, "scope", v.Scope, "limit", v.Limit,
		"reason", v.Reason, "group", v.Group)
}
