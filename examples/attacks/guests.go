package main

// Honest peers. They ask for an echo. What counts is whether they get it at the first
// attempt, and how long that takes.

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// patience is how long one request, or one dial, may take.
const patience = 5 * time.Second

// echoProtocol is the protocol of the one service that all hosts here have.
const echoProtocol protocol.ID = "/attacks/echo/1.0.0"

func serveEcho(h host.Host) {
	h.SetStreamHandler(echoProtocol, func(s network.Stream) {
		io.Copy(s, s)
		s.Reset()
	})
}

// come connects to a host and asks it.
func come(ctx context.Context, h host.Host, to peer.AddrInfo) error {
	if err := connect(ctx, h, to); err != nil {
		return err
	}
	return ask(ctx, h, to.ID)
}

// ask asks on a new stream.
func ask(ctx context.Context, h host.Host, of peer.ID) error {
	s, err := h.NewStream(asConnected(ctx), of, echoProtocol)
	if err != nil {
		return err
	}
	defer s.Reset()
	return askOn(ctx, s)
}

// askOn asks on an open stream, which cannot be used after an error.
func askOn(ctx context.Context, s network.Stream) error {
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	question, answer := []byte("is anybody there?"), make([]byte, 17)
	if _, err := s.Write(question); err != nil {
		return err
	}
	if _, err := io.ReadFull(s, answer); err != nil {
		return err
	}
	if !slices.Equal(question, answer) {
		return errors.New("the answer is not the echo")
	}
	return nil
}

// friend is a peer that the victim knows.
type friend struct {
	id  peer.ID
	key crypto.PrivKey
}

const numFriends = 8

func newFriend() (f friend, err error) {
	if f.key, _, err = crypto.GenerateEd25519Key(rand.Reader); err != nil {
		return f, err
	}
	f.id, err = peer.IDFromPrivateKey(f.key)
	return f, err
}

// A tally is how many requests of a group were served, and how long each of these took.
type tally struct {
	Took   []time.Duration
	Failed int
	Last   string // the last error
}

func (t tally) asked() int { return len(t.Took) + t.Failed }

// rate returns the fraction of requests that were served, 0 if there were none.
func (t tally) rate() float64 { return float64(len(t.Took)) / float64(max(t.asked(), 1)) }

// A group is the guests of one kind.
type group struct {
	name string
	mu   sync.Mutex
	tally
}

// do times and counts a request, and reports whether it was served. A request that the
// end of the attack cuts short does not count.
func (g *group) do(ctx context.Context, request func(context.Context) error) bool {
	start := time.Now()
	asking, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := request(asking)
	took := time.Since(start)
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case ctx.Err() != nil:
	case err != nil:
		g.Failed++
		g.Last = err.Error()
	default:
		g.Took = append(g.Took, took)
	}
	return err == nil
}

func (g *group) soFar() tally {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.tally
	t.Took = slices.Clone(t.Took)
	return t
}
