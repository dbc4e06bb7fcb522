package main

// The victim: a host on one of the managers. It is a process of its own, so that its
// memory is not mixed with that of others. It reads its order from its input, answers
// each question with a report, and ends when its input does.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/metrics"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/weir-p2p/rcmgr"
)

// victimEnv is the variable of the environment that makes this program a victim.
const victimEnv = "ATTACKS_VICTIM"

// order says what a victim runs.
type order struct {
	Attack    string
	Column    int
	Attackers int
	Memory    int64     // bytes that it may use
	Friends   []peer.ID // peers that it knows
	Asks      peer.AddrInfo
}

// plan is how an attack carries out an order.
type plan struct {
	limits    rcmgr.PartialLimitConfig // limits that are not set are unlimited
	allowlist []multiaddr.Multiaddr
	option    rcmgr.Option // our option that is meant for the attack; nil if that is rates
	rates     rcmgr.Rates  // of each peer, with the option
	host      []libp2p.Option
	start     func(host.Host)   // may be nil
	atWorst   func(report) bool // whether the attack is at its worst
}

// question is a question to a victim.
type question string

const (
	howIsIt   question = "how is it"
	whatsLeft question = "what is left" // when all other hosts are closed
)

// report is a victim's answer.
type report struct {
	Victim    peer.AddrInfo
	AtWorst   bool
	Crowd     map[string]int // refusals by their description, see why
	Guests    map[int]int    // refusals, by group
	Streams   streamCounts
	Memory    memory
	Own       tally    // the victim's own requests, since the attack was at its worst
	Forgotten int      // connections that the host did not close
	Left      []string // scopes that hold something when all other hosts are closed
}

// refused reports whether any attacker was refused this.
func (r *report) refused(what string) bool {
	for why := range r.Crowd {
		if strings.Contains(why, what) {
			return true
		}
	}
	return false
}

type victim struct {
	order
	plan
	host    host.Host
	manager network.ResourceManager
	seen    *observer
	own     group
	begin   sync.Once
	stop    context.CancelFunc
	ctx     context.Context
	wg      sync.WaitGroup

	mu     sync.Mutex
	memory memory
}

// beVictim runs the program as a victim.
func beVictim(in io.Reader, out io.Writer) error {
	signal.Ignore(os.Interrupt) // only the asking process handles it
	questions, answers := json.NewDecoder(in), json.NewEncoder(out)
	var o order
	if err := questions.Decode(&o); err != nil {
		return fmt.Errorf("an order: %w", err)
	}
	v, err := newVictim(o)
	if err != nil {
		return err
	}
	defer v.host.Close()
	defer v.stop()
	v.wg.Go(v.watchMemory)
	for {
		var q question
		if err := questions.Decode(&q); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		r := v.report()
		if q == whatsLeft {
			if err := v.settle(&r); err != nil {
				return err
			}
		}
		if err := answers.Encode(&r); err != nil {
			return err
		}
	}
}

func newVictim(o order) (*victim, error) {
	a := attackNamed(o.Attack)
	if a == nil {
		return nil, fmt.Errorf("no such attack: %q", o.Attack)
	}
	p, err := a.plan(o)
	if err != nil {
		return nil, err
	}
	m, err := columns[o.Column].make(p)
	if err != nil {
		return nil, err
	}
	v := &victim{order: o, plan: p, manager: m, seen: newObserver(m)}
	// libp2p.New closes the manager if it fails; otherwise closing the host does.
	if v.host, err = libp2p.New(append(p.host, libp2p.ListenAddrStrings(listenAddr), libp2p.ResourceManager(v.seen),
		libp2p.DisableRelay(), libp2p.DisableMetrics())...); err != nil {
		return nil, err
	}
	if m, ok := rcmgr.ManagerOf(v.seen); ok {
		m.AttachHost(v.host)
	}
	serveEcho(v.host)
	if p.start != nil {
		p.start(v.host)
	}
	v.ctx, v.stop = context.WithCancel(context.Background())
	return v, nil
}

// report returns the current state. From the first report that finds the attack at its
// worst, the victim makes requests of its own.
func (v *victim) report() report {
	crowd, guests := v.seen.refused()
	r := report{Victim: *host.InfoFromHost(v.host), Crowd: crowd, Guests: guests, Streams: v.seen.paced(), Own: v.own.soFar()}
	v.mu.Lock()
	r.Memory = v.memory
	v.mu.Unlock()
	if r.AtWorst = v.atWorst(r); r.AtWorst {
		v.begin.Do(func() { v.wg.Go(v.askAround) })
	}
	return r
}

// askAround asks the host that the order names, on a new connection each time.
func (v *victim) askAround() {
	for pause(v.ctx, 100*time.Millisecond) {
		v.own.do(v.ctx, func(ctx context.Context) error { return come(ctx, v.host, v.Asks) })
		v.host.Network().ClosePeer(v.Asks.ID)
	}
}

// settle waits until nothing is held any more, and reports what is left if that takes too
// long.
func (v *victim) settle(r *report) error {
	v.stop()
	v.wg.Wait()
	if err := v.drain(r); err != nil || len(r.Left) == 0 {
		return err
	}
	if n := len(v.host.Network().Conns()); n > 0 {
		return errors.New("others are still there")
	}
	r.Forgotten = v.seen.closeForgotten()
	return v.drain(r)
}

// settling is how long connections and streams of closed hosts may take to end.
const settling = 15 * time.Second

func (v *victim) drain(r *report) (err error) {
	for end := time.Now().Add(settling); ; time.Sleep(10 * time.Millisecond) {
		r.Left, err = held(v.manager)
		if err != nil || len(r.Left) == 0 || time.Now().After(end) {
			return err
		}
	}
}

// memory has the largest readings of the process's memory, in bytes.
type memory struct {
	HeapMost    int64 // objects, with garbage since the last collection
	Process     int64 // all memory that the runtime has from the system
	ProcessMost int64
	Looks, Over int // how often it was read, and how often it was above the limit
}

// watchMemory reads the memory a hundred times a second.
func (v *victim) watchMemory() {
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
	}
	for pause(v.ctx, 10*time.Millisecond) {
		metrics.Read(samples)
		at := func(i int) int64 { return int64(samples[i].Value.Uint64()) }
		v.mu.Lock()
		m := &v.memory
		m.HeapMost = max(m.HeapMost, at(0))
		m.Process = at(1) - at(2)
		m.ProcessMost = max(m.ProcessMost, m.Process)
		if m.Looks++; m.Process > v.Memory {
			m.Over++
		}
		v.mu.Unlock()
	}
}
