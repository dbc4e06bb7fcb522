package rcmgr

// What differential_test.go compares after each call: errors, what everything holds,
// limits, and what a stream or connection is attached to.

import (
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/network"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
)

// question1 is what is known of a call whose answers are compared.
type question1 struct {
	asked string // the scope that was asked, if it is a connection or stream
	moves bool
	span  bool // asked of a span of a span, or of what has owners
	// follows: asked of a span that follows the limit of an owner that is done, or whose
	// owners do
	follows bool
}

// read is what an error says.
type read struct {
	class string // "" for no error
	asked string
	scope string
	what  string
}

func readError(err error) read {
	switch {
	case err == nil:
		return read{}
	case errors.Is(err, network.ErrResourceLimitExceeded):
	case errors.Is(err, network.ErrResourceScopeClosed):
		parts := strings.Split(numbers.ReplaceAllString(err.Error(), "$1"), ": ")
		return read{class: "closed", asked: parts[0], scope: parts[max(0, len(parts)-2)]}
	default:
		return read{class: "misused"}
	}
	text, _ := strings.CutSuffix(numbers.ReplaceAllString(err.Error(), "$1"), limitExceededSuffix)
	parts := strings.Split(text, ": ")
	r := read{class: "limited", what: "memory"}
	if what, ok := strings.CutPrefix(parts[len(parts)-1], "cannot reserve "); ok {
		r.what, parts = what, parts[:len(parts)-1]
	}
	r.asked, r.scope = parts[0], parts[len(parts)-1]
	return r
}

// same compares two answers, and reports whether both are yes.
func (w *worlds) same(q question1, theirErr, ownErr error) bool {
	if theirErr == nil && ownErr == nil {
		return true
	}
	theirs, own := readError(theirErr), readError(ownErr)
	w.tell("  %v; %v", theirErr, ownErr)
	if q.follows && theirs.class == "limited" && own.class == "closed" {
		w.excuse(excuseSpanLimit) // of an owner that is done
		return false
	}
	if theirs.class != own.class {
		w.fail("go-libp2p's: %v; ours: %v", theirErr, ownErr)
		return false
	}
	switch theirs.class {
	case "misused":
		w.excuse(excuseMisuseText)
	case "closed":
		w.excuse(excuseReporter) // of a span whose owner is closed, go-libp2p's tells that memory is short
		if theirs != own {
			w.fail("closed: %v; %v", theirErr, ownErr)
		}
	case "limited":
		w.sameRefusal(q, theirs, own, theirErr, ownErr)
	}
	return false
}

func (w *worlds) sameRefusal(q question1, theirs, own read, theirErr, ownErr error) {
	if q.moves { // ours also names the scope that asked
		theirs.asked = q.asked
	}
	if q.asked != "" && own.asked != q.asked || theirs != own {
		w.fail("%+v: %v; %+v: %v", theirs, theirErr, own, ownErr)
	}
	// What a host sees.
	theirText, ownText := errors.Unwrap(theirErr).Error(), errors.Unwrap(ownErr).Error()
	switch {
	case q.moves:
		w.excuse(excuseMoveText)
		theirText = theirErr.Error()
		if theirs.what == "memory" {
			ownText = strings.Replace(ownText, "cannot reserve memory: ", "", 1)
		}
	case theirs.what == "memory":
		w.excuse(excuseMemoryText)
		theirText = "cannot reserve memory" + limitExceededSuffix
		if own.scope != own.asked || strings.Contains(ownText, ": cannot") {
			theirText = own.scope + ": " + theirText
		}
	}
	if numbers.ReplaceAllString(ownText, "$1") != numbers.ReplaceAllString(theirText, "$1") {
		w.fail("unwrapped: %q; %q", theirText, ownText)
	}
	var (
		theirMemory *upstream.ErrMemoryLimitExceeded
		theirCount  *upstream.ErrStreamOrConnLimitExceeded
		memory      *ErrMemoryLimitExceeded
		count       *ErrStreamOrConnLimitExceeded
	)
	if errors.As(theirErr, &theirMemory) != errors.As(ownErr, &memory) || errors.As(theirErr, &theirCount) != errors.As(ownErr, &count) {
		w.fail("as types: %v; %v", theirErr, ownErr)
	}
}

// compare compares what every scope holds, and with all also their limits,
// what they are attached to, and the lists.
func (w *worlds) compare(all bool) {
	theirs, own := w.theirState.Stat(), w.own.Stat()
	if theirs.System != own.System || theirs.Transient != own.Transient || !maps.Equal(theirs.Peers, own.Peers) ||
		!maps.Equal(theirs.Protocols, own.Protocols) || !maps.Equal(theirs.Services, own.Services) {
		w.fail("they hold\n%+v\n%+v", theirs, own)
	}
	for _, list := range [][]*twin{w.held, w.ended} {
		for _, tw := range list {
			if theirs, own := tw.theirs.Stat(), tw.own.Stat(); theirs != own {
				w.fail("%v holds %+v; %+v", tw, theirs, own)
			}
			if all {
				w.compareLimit(tw)
				w.compareAttached(tw)
			}
		}
	}
	if !all {
		return
	}
	for _, tw := range w.shared {
		if theirs, own := tw.theirs.Stat(), tw.own.Stat(); theirs != own {
			w.fail("%v holds %+v; %+v", tw, theirs, own)
		}
		w.compareLimit(tw)
	}
	if a, b := w.theirState.ListPeers(), w.own.ListPeers(); !slices.Equal(a, b) {
		w.fail("peers %v; %v", a, b)
	}
	if a, b := w.theirState.ListProtocols(), w.own.ListProtocols(); !slices.Equal(a, b) {
		w.fail("protocols %v; %v", a, b)
	}
	if a, b := w.theirState.ListServices(), w.own.ListServices(); !slices.Equal(a, b) {
		w.fail("services %v; %v", a, b)
	}
}

func (w *worlds) compareLimit(tw *twin) {
	theirs := limitsOf(tw.theirs.(upstream.ResourceScopeLimiter).Limit())
	own := limitsOf(tw.own.(ResourceScopeLimiter).Limit())
	if tw.limitEnded() && own == (amounts{}) {
		w.excuse(excuseAfterDone)
	} else if theirs != own {
		w.fail("limits of %v: %v; %v", tw, theirs, own)
	}
}

// limitEnded reports whether what would limit a connection, stream or span is done.
func (tw *twin) limitEnded() bool {
	for x := tw; x != nil; x = x.owner {
		if x.done {
			return true
		}
		if x.ownLimit {
			return false
		}
	}
	return false
}

// followsEnded reports whether what a span asks, itself first, would be limited by an owner
// that is done.
func (tw *twin) followsEnded() bool {
	for x := tw; x != nil && !x.done; x = x.owner {
		if x.limitEnded() {
			return true
		}
	}
	return false
}

// compareAttached compares what connections and streams are attached to. What
// they are not attached to must be nil itself, not a nil pointer.
func (w *worlds) compareAttached(tw *twin) {
	if tw.apart {
		return
	}
	attached := func(s any) (peerID, proto, svc string) {
		if c, ok := s.(interface{ PeerScope() network.PeerScope }); ok && c.PeerScope() != nil {
			peerID = string(c.PeerScope().Peer())
		}
		if s, ok := s.(network.StreamManagementScope); ok {
			if s.ProtocolScope() != nil {
				proto = string(s.ProtocolScope().Protocol())
			}
			if s.ServiceScope() != nil {
				svc = s.ServiceScope().Name()
			}
		}
		return peerID, proto, svc
	}
	theirPeer, theirProto, theirSvc := attached(tw.theirs)
	if tw.done && theirProto != "" {
		theirProto, theirSvc = "", ""
		w.excuse(excuseAfterDone)
	}
	if p, proto, svc := attached(tw.own); p != theirPeer || proto != theirProto || svc != theirSvc {
		w.fail("%v is attached to %q %q %q; %q %q %q", tw, theirPeer, theirProto, theirSvc, p, proto, svc)
	}
}

// compareTalk compares the calls of a MetricsReporter by both managers. Go-libp2p's
// reports memory once for each owner of a span.
func (w *worlds) compareTalk() {
	theirs, own := w.theirTalk.said, w.ownTalk.said
	if len(theirs) > len(own) && len(own) > 0 && strings.Contains(own[0], "memory") {
		w.excused[excuseReporter]++
		theirs = slices.Compact(theirs)
	}
	if !w.quiet && !slices.Equal(theirs, own) {
		w.fail("reporters heard %q; %q", theirs, own)
	}
	w.theirTalk.said, w.ownTalk.said, w.quiet = theirs[:0], own[:0], false
}
