package main

// All hosts of the soak: how they are made, changed and closed.

import (
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// outcomes counts how attempts ended.
type outcomes struct{ done, refused, failed atomic.Int64 }

func (o *outcomes) String() string {
	return fmt.Sprintf("%d, %d refused here, %d failed", o.done.Load(), o.refused.Load(), o.failed.Load())
}

type world struct {
	settings
	out   io.Writer
	began time.Time
	// patience is how long the accounts may take to be right in a pause.
	patience time.Duration
	r        *rand.Rand // for the main goroutine

	mu    sync.RWMutex // guards the list
	nodes []*node

	// quiet is held for reading by each errand, and for writing during a pause.
	quiet sync.RWMutex

	connects, fetches outcomes
	tally
	base process // before any host
}

func newWorld(s settings, out io.Writer) *world {
	return &world{settings: s, out: out, began: time.Now(), patience: patience, r: rand.New(rand.NewPCG(s.seed, 0)), base: look()}
}

// populate makes all hosts, and starts their traffic.
func (w *world) populate() error {
	for i := range w.hosts {
		r := member
		switch i {
		case 0, 1:
			r = relays
		case 2, 3:
			r = hidden
		}
		trace := ""
		if i == 0 {
			trace = w.trace
		}
		if _, err := w.add(r, trace); err != nil {
			return err
		}
	}
	return nil
}

// add makes a host, and starts its traffic. The trace of its manager goes to the file trace,
// if that is not empty.
func (w *world) add(r role, trace string) (*node, error) {
	n, err := newNode(r, w.hosts, trace)
	if err != nil {
		return nil, err
	}
	switch r {
	case relays:
		err = n.relaysNow()
	case hidden:
		err = n.reserveAt(w.nodes[w.identities%2])
	}
	if err != nil {
		w.endNode(n)
		return nil, err
	}
	w.identities++
	w.mu.Lock()
	w.nodes = append(w.nodes, n)
	w.mu.Unlock()
	if r != relays { // relays only serve
		for i := range errandsAtOnce {
			seed := w.seed ^ uint64(w.identities*errandsAtOnce+i)
			n.work.Go(func() { w.errands(n, rand.New(rand.NewPCG(seed, 1))) })
		}
	}
	return n, nil
}

// randomHost returns a random host, or nil if there is none.
func (w *world) randomHost(r *rand.Rand) *node {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if len(w.nodes) == 0 {
		return nil
	}
	return w.nodes[r.IntN(len(w.nodes))]
}

// replaceOne closes a host that is not a relay, and makes another with a new identity.
func (w *world) replaceOne() error {
	i := 2 + w.r.IntN(len(w.nodes)-2)
	old := w.nodes[i]
	w.mu.Lock()
	w.nodes = append(w.nodes[:i:i], w.nodes[i+1:]...)
	w.mu.Unlock()
	w.endNode(old)
	_, err := w.add(old.role, "")
	return err
}

func (w *world) changeLimits() { w.nodes[w.r.IntN(len(w.nodes))].changeLimits(w.r) }

// end closes all hosts. After that nothing of them may be left.
func (w *world) end() {
	for _, n := range w.nodes {
		n.stop()
	}
	for _, n := range w.nodes {
		n.work.Wait()
	}
	nodes := w.nodes
	w.mu.Lock()
	w.nodes = nil
	w.mu.Unlock()
	for i := len(nodes) - 1; i >= 0; i-- { // the relays last
		w.endNode(nodes[i])
	}
	var p process
	if !within(patience, func() bool {
		p = look()
		return p.connections <= w.base.connections && p.goroutines <= w.base.goroutines
	}) {
		w.complain("at the end: %d connections and %d goroutines, before %d and %d",
			p.connections, p.goroutines, w.base.connections, w.base.goroutines)
		stacks := make([]byte, 1<<20)
		fmt.Fprintf(w.out, "%s\n", stacks[:runtime.Stack(stacks, true)])
	}
}
