package rcmgr

// Making room on a full host. The engine reports what is short (reserve.go). A worker takes the
// reports, and internal/letgo lets connections and streams go until the reserve is free again.

import (
	"iter"
	"time"

	"github.com/multiformats/go-multiaddr"

	"github.com/weir-p2p/rcmgr/internal/letgo"
)

// newRoom returns the maker of room, or nil without a configuration.
func (m *Manager) newRoom(c *RoomConfig) *letgo.Room {
	if c == nil {
		return nil
	}
	internal := letgo.Config{Protocols: c.Protocols, PerSecond: c.PerSecond, Observe: c.ObserveOnly,
		ByHand: c.ByHand, Now: c.Now, Seed: c.Seed, Group: m.owner}
	closing := &guard{callback: "a host that room is made on", then: "room is made elsewhere, and is tried to be made there again"}
	return letgo.New(internal, letgo.Engine{
		Own:   unwrapped,
		Facts: m.factsOf,
		Lacks: m.lacks,
		Again: func(l letgo.Lack) { l.In.(lacking).again(dim(l.Dim)) },
		Try: func(what string, f func()) bool {
			err := closing.try(f)
			if err != nil {
				log.Debug("a host failed while room was made", "what", what, "err", err)
			}
			return err == nil
		},
		Locate: placeOfAddr,
		Gone:   m.traceLetGo,
		Log:    log,
	})
}

// lacking is what can be short of something: a pool, or the memory of the process.
type lacking interface {
	again(dim) // has the next pass look at it, too
}

func (p *pool) again(d dim) { p.asked.Or(1 << d) }

func (f *freeing) again(dim) { f.asked.Store(1) }

// traceLetGo adds the event that a connection or stream was let go.
func (m *Manager) traceLetGo(v letgo.Victim) {
	if m.trace != nil {
		m.trace.push(traceEvent{typ: TraceLetGoEvt, name: scopeName{kind: kindOfVictim(&v), num: v.Num}})
	}
}

func kindOfVictim(v *letgo.Victim) Kind {
	if v.Stream {
		return KindStream
	}
	return KindConn
}

// placeOfAddr returns the place of an address, as the shares of subnets see it: a peer behind a
// relay belongs to the relay.
func placeOfAddr(a multiaddr.Multiaddr) (p letgo.Place) {
	far := endpointOf(a)
	if p.Addr = far.addr; far.relayed {
		p.Addr, p.Relay = far.via, "unknown"
		if id, err := a.ValueForProtocol(multiaddr.P_P2P); err == nil {
			p.Relay = id
		}
	}
	p.Local = p.Addr == localhost4 || p.Addr == localhost6
	return p
}

// AttachHost lets a manager with WithRoom make room on a host: close its connections and reset
// its streams. A host is attached after libp2p.New has made it; the options of package rcmgrhost
// do so by themselves. The scopes of the host's connections are those that the manager has
// returned, or wrappers with a method Unwrap() network.ResourceScope. Several hosts may be
// attached.
//
// With or without WithRoom, a warning is logged when SetLimits or Refresh has put limits in force
// that conflict with the connection manager of an attached host, as CheckConnManager finds them.
//
// The function that AttachHost returns detaches the host. A host that is closed has no
// connections, and need not be detached unless many hosts come and go. It is safe for concurrent
// use.
func (m *Manager) AttachHost(h RoomHost) (detach func()) {
	if h == nil {
		m.reportBug("no host was to be attached")
		return func() {}
	}
	compared := m.checks.add(func() string { return m.conflictWith(h) })
	if m.room == nil {
		return compared
	}
	emptied := m.room.Attach(h)
	return func() {
		compared()
		emptied()
	}
}

// AttachHandshakes lets a manager with WithRoom end handshakes that are under way, when the
// transient or system scope is short of connections or descriptors. The option RoomForHandshakes
// of package rcmgrhost does so for TCP, WebSocket and relayed connections; AttachHandshakes is
// for hosts that are made in another way. all returns the handshakes that are under way, and may
// be called and used by any goroutine.
//
// The function that AttachHandshakes returns removes them again. on reports whether the manager
// makes room; if it does not, AttachHandshakes does nothing. It is safe for concurrent use.
func (m *Manager) AttachHandshakes(all iter.Seq[Handshake]) (detach func(), on bool) {
	if all == nil {
		m.reportBug("no handshakes were to be attached")
		return func() {}, false
	}
	if m.room == nil {
		return func() {}, false
	}
	detach = m.room.AttachHandshakes(func(yield func(letgo.Handshake) bool) {
		all(func(h Handshake) bool { return yield(h) })
	})
	m.heedHandshakes()
	return detach, true
}

// MakeRoom makes room now, if anything is short, and returns how many connections and streams
// were let go. A manager does so by itself as soon as it is needed, unless RoomConfig.ByHand is
// set. It is safe for concurrent use.
func (m *Manager) MakeRoom() (n int) {
	if m.room == nil {
		return 0
	}
	select {
	case <-m.alarm.ring:
	default:
		return 0
	}
	for {
		o := m.room.Pass()
		n += o.LetGo
		if !o.Later {
			return n
		}
		if o.LetGo == 0 { // what is going is waited for by the next call, or by the worker
			m.alarm.sound()
			return n
		}
	}
}

const (
	// roomPause is the least time between two passes, in which newcomers are admitted from the
	// reserve.
	roomPause = 5 * time.Millisecond
	// waitingPause and barrenPause are the longest times between two passes while closings are
	// waited for, and while all that is left is kept. The first is short because newcomers use up
	// the reserve meanwhile; such a pass looks at no connections.
	waitingPause = 20 * time.Millisecond
	barrenPause  = time.Second
)

// makeRoom makes room whenever it is needed, until the manager is closed.
func (m *Manager) makeRoom() {
	for idle := roomPause; ; { // the pause after a pass that let nothing go
		select {
		case <-m.alarm.ring:
		case <-m.stop:
			return
		}
		for again := true; again; {
			began := time.Now()
			var o letgo.Outcome
			done := make(chan struct{})
			m.workers.Go(func() { // on its own: code of the program may end the goroutine
				defer close(done)
				o = m.room.Pass()
			})
			<-done
			again = o.Later
			switch {
			case o.LetGo > 0:
				idle = roomPause
			case again:
				idle = min(2*idle, waitingPause)
			case o.Barren:
				idle = min(2*idle, barrenPause)
			}
			if !m.waits(max(idle, roomShare*time.Since(began))) {
				return
			}
		}
	}
}

// waits waits, and reports whether the manager is still open then.
func (m *Manager) waits(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-m.stop:
		return false
	}
}

// roomLog has what was let go up to the last line of the log.
type roomLog struct{ last letgo.State }

// of returns the job that logs what was let go since the last line, if anything was.
func (l *roomLog) of(m *Manager) func() {
	return func() {
		now := m.room.State()
		line := func(msg string, counts, before map[letgo.Key]uint64) {
			var n uint64
			attrs := []any{}
			since := make(map[letgo.Key]uint64)
			for k, times := range counts {
				if times > before[k] {
					since[k] = times - before[k]
				}
			}
			for _, c := range roomCounts(since) {
				n += c.Count
				attrs = append(attrs, c.Scope.String()+"_"+c.What.String()+"_"+c.Reason, c.Count)
			}
			if n == 0 {
				return
			}
			if len(now.Last) > 0 {
				v := &now.Last[len(now.Last)-1]
				attrs = append(attrs, "last", v.Name(), "peer", v.Peer, "short_of", v.Scope+" "+v.Limit, "group", printable(v.Group))
			}
			log.Warn(msg, append([]any{"count", n}, attrs...)...)
		}
		line("connections and streams were let go to make room", now.LetGo, l.last.LetGo)
		line("connections and streams would have been let go to make room", now.Would, l.last.Would)
		for k, n := range now.OnlyKept {
			if n > l.last.OnlyKept[k] {
				log.Warn("no room could be made: all that is left is kept", "scope", Kind(k).String(), "hosts", now.Hosts)
			}
		}
		l.last = now
	}
}
