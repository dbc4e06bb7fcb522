package rcmgr

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/webpage"
)

// busy returns a manager that holds and has refused something, under names that
// strangers chose.
func busy(t *testing.T) *Manager {
	limits := PartialLimitConfig{System: ResourceLimits{StreamsInbound: 10, Memory: 1 << 20}}.Build(InfiniteLimits)
	m, err := New(NewFixedLimiter(limits))
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	for range 10 {
		s, err := m.OpenStream("a peer", network.DirInbound)
		require.NoError(t, err)
		t.Cleanup(s.Done)
		require.NoError(t, s.SetProtocol(evil))
	}
	for range 3 {
		_, err := m.OpenStream("a peer", network.DirInbound)
		require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
	}
	return m
}

const evil protocol.ID = `/<script>document.title="stolen"</script>/"'&`

func TestPageSpeaksTheClientsLanguage(t *testing.T) {
	h := Handler(busy(t))
	const html, text, jsonType = "text/html; charset=utf-8", "text/plain; charset=utf-8", "application/json"
	for _, c := range []struct {
		target string
		accept []string
		want   string
	}{
		{"/", nil, text},
		{"/", []string{"*/*"}, text},
		{"/", []string{"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}, html},
		{"/", []string{"application/json"}, jsonType},
		{"/", []string{"text/html;q=0.5, application/json"}, jsonType},
		{"/", []string{"text/html;q=0.5", "text/plain;q=0.7"}, text},
		{"/", []string{"application/json;q=0"}, text},
		{"/", []string{"image/png, nonsense/"}, text},
		{"/?format=json", []string{"text/html"}, jsonType},
		{"/?format=html", []string{"application/json"}, html},
		{"/any/path?format=text", []string{"text/html"}, text},
	} {
		got := ask(h, "GET", c.target, c.accept...)
		require.Equal(t, 200, got.StatusCode)
		require.Equal(t, c.want, got.Header.Get("Content-Type"), "%s %v", c.target, c.accept)
		require.Equal(t, !strings.Contains(c.target, "format="), slices.Contains(got.Header.Values("Vary"), "Accept"),
			"a cache is told what the answer depends on")
	}
	got := ask(h, "GET", "/?format=xml")
	require.Equal(t, 400, got.StatusCode)
	require.Contains(t, bodyOf(t, got), `format is "xml", expected html, text or json`)
}

func TestPageCannotChangeAnything(t *testing.T) {
	h := Handler(busy(t))
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS"} {
		got := ask(h, method, "/")
		require.Equal(t, 405, got.StatusCode)
		require.Equal(t, "GET, HEAD", got.Header.Get("Allow"))
	}
	server := httptest.NewServer(http.StripPrefix("/debug/rcmgr", h))
	defer server.Close()
	got, err := http.Head(server.URL + "/debug/rcmgr")
	require.NoError(t, err)
	require.Equal(t, 200, got.StatusCode)
	require.Empty(t, bodyOf(t, got))
}

func TestPageShowsWhatTheSnapshotHas(t *testing.T) {
	m := busy(t)
	h := Handler(m)
	var s Snapshot
	require.NoError(t, json.Unmarshal([]byte(bodyOf(t, ask(h, "GET", "/?format=json"))), &s))
	require.Equal(t, uint64(3), s.Refusals[KindSystem].StreamsInbound)
	require.Equal(t, 1, s.Peers)

	var table strings.Builder
	require.NoError(t, s.shownLimits().WriteTable(&table))
	text := bodyOf(t, ask(h, "GET", "/?format=text"))
	require.Contains(t, text, table.String())
	require.Contains(t, text, "1 peer, 3 refusals, 0 bugs of callers")

	html := bodyOf(t, ask(h, "GET", "/?format=html"))
	require.Contains(t, html, `<tr class="near"><td class="name" title="system"><a href="?scope=system">system</a></td><td>StreamsInbound</td><td class="n" data-v="100">100.0%</td>`)
	require.Contains(t, html, `<progress max="100" value="100">100.0%</progress>`)
	require.Contains(t, html, "1.0 MiB")
	require.Less(t, strings.Index(html, ">StreamsInbound<"), strings.Index(html, ">Memory<"), "the fullest first")
}

func TestPagePlotsTheLastMinutesWithoutAScript(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := New(NewFixedLimiter(PartialLimitConfig{System: ResourceLimits{StreamsInbound: BlockAllLimit}}.Build(InfiniteLimits)))
		require.NoError(t, err)
		defer m.Close()
		h := Handler(m)
		require.NotContains(t, bodyOf(t, ask(h, "GET", "/?format=html")), "<svg", "nothing is known yet")
		time.Sleep(time.Second) // between two looks
		for range 3 {
			for range 20 {
				_, err := m.OpenStream("a peer", network.DirInbound)
				require.ErrorIs(t, err, network.ErrResourceLimitExceeded)
			}
			time.Sleep(historyInterval)
		}
		time.Sleep(historyInterval / 2)
		html := bodyOf(t, ask(h, "GET", "/?format=html"))
		require.Contains(t, html, `<polyline points="170.0,2.0 220.0,2.0 270.0,2.0 300.0,38.0"/>`)
		require.Contains(t, html, "Refusals a second, last 1 min: 2.0 at most, 0.0 now")
	})
}

func TestThePageLeavesOutResourcesThatAPeerCannotHave(t *testing.T) {
	limits := PartialLimitConfig{PeerDefault: ResourceLimits{StreamsInbound: 4, Conns: 4, FD: BlockAllLimit}}.Build(InfiniteLimits)
	m, err := New(NewFixedLimiter(limits))
	require.NoError(t, err)
	defer m.Close()
	s, err := m.OpenStream("a peer", network.DirInbound)
	require.NoError(t, err)
	defer s.Done()
	c, err := m.OpenConnection(network.DirInbound, true, nil)
	require.NoError(t, err)
	defer c.Done()
	require.Error(t, c.SetPeer("a peer"))
	html := bodyOf(t, ask(Handler(m), "GET", "/?format=html"))
	row := func(limit string) string {
		return `">peer:` + peer.ID("a peer").String() + `</a></td><td>` + limit + `</td>`
	}
	require.Contains(t, html, row("StreamsInbound"), "is held")
	require.Contains(t, html, row("FD"), "was refused")
	require.NotContains(t, html, row("Conns"))
	require.NotContains(t, html, "Inf", "no number in JavaScript")
}

func TestPageEscapesNamesAndLoadsNothing(t *testing.T) {
	got := ask(Handler(busy(t)), "GET", "/?format=html")
	html := bodyOf(t, got)
	require.NotContains(t, html, `<script>document`)
	require.Contains(t, html, `&lt;script&gt;document.title=&#34;stolen&#34;&lt;/script&gt;`)
	require.NotContains(t, html, "://", "no other place is named")
	require.NotContains(t, html, " style=", "the policy would refuse it")
	policy := regexp.MustCompile(`'sha256-[\w+/=]+'`).ReplaceAllString(got.Header.Get("Content-Security-Policy"), "'sum'")
	require.ElementsMatch(t, []string{
		"default-src 'none'", "connect-src 'self'", "img-src data:", "script-src 'sum'", "style-src 'sum'",
		"base-uri 'none'", "form-action 'self'", "frame-ancestors 'none'",
	}, strings.Split(policy, "; "))
	require.Equal(t, "nosniff", got.Header.Get("X-Content-Type-Options"))
	require.Equal(t, "no-store", got.Header.Get("Cache-Control"))
}

func TestPageAsksTheManagerOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := New(NewFixedLimiter(InfiniteLimits))
		require.NoError(t, err)
		defer m.Close()
		h := Handler(m)
		looks := make(map[string]bool)
		for range 10 { // a tenth of a second apart
			var s Snapshot
			require.NoError(t, json.Unmarshal([]byte(bodyOf(t, ask(h, "GET", "/?format=json"))), &s))
			looks[s.Taken.String()] = true
			time.Sleep(webpage.Fresh / 10)
		}
		require.Len(t, looks, 1)
		var s Snapshot
		require.NoError(t, json.Unmarshal([]byte(bodyOf(t, ask(h, "GET", "/?format=json"))), &s))
		require.False(t, looks[s.Taken.String()])
	})
}

// countedLimiter counts what it is asked for peers.
type countedLimiter struct {
	Limiter
	asked *atomic.Int64
}

func (l countedLimiter) GetPeerLimits(p peer.ID) Limit {
	l.asked.Add(1)
	return l.Limiter.GetPeerLimits(p)
}

const aQuestion = "/?explain=stream&direction=inbound&peer=12D3KooWRpAPnRgC4qHPPkFkrwbCrjMJGHvRRJVMKGmvXaUEMMPL"

// A question takes all stripe locks and asks the Limiter: however many clients ask
// however much, the manager answers a few of them.
func TestPageAsksTheManagerFewQuestions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		m, err := New(countedLimiter{NewFixedLimiter(InfiniteLimits), &asked})
		require.NoError(t, err)
		defer m.Close()
		h := Handler(m)
		answered, refused := 0, 0
		asked.Store(0)
		for range 1001 { // ten seconds and the moment after
			for i, format := range []string{"text", "json", "html"} {
				got := ask(h, "GET", aQuestion+fmt.Sprintf("&memory=%d&format=%s", i, format))
				switch got.StatusCode {
				case http.StatusOK:
					answered++
				case http.StatusTooManyRequests:
					refused++
					require.Equal(t, "1", got.Header.Get("Retry-After"))
					require.Contains(t, bodyOf(t, got), "5 questions a second")
				default:
					require.Fail(t, got.Status)
				}
			}
			time.Sleep(10 * time.Millisecond)
		}
		require.EqualValues(t, questionsASecond*(1+10), answered, "as many at once at first")
		require.Equal(t, 3*1001, answered+refused)
		require.LessOrEqual(t, asked.Load(), int64(answered), "a question that is not answered asks nobody")

		time.Sleep(time.Second)
		for range 100 { // neither is one that is wrong
			require.Equal(t, http.StatusBadRequest, ask(h, "GET", "/?explain=boat").StatusCode)
			require.Equal(t, http.StatusBadRequest, ask(h, "GET", aQuestion+"&format=xml").StatusCode)
		}
		require.Equal(t, http.StatusOK, ask(h, "GET", aQuestion).StatusCode)
	})
}

// Only the header is asked for, so the manager need not be asked.
func TestHeadAsksTheManagerNothing(t *testing.T) {
	var asked atomic.Int64
	m, err := New(countedLimiter{NewFixedLimiter(InfiniteLimits), &asked})
	require.NoError(t, err)
	defer m.Close()
	h := Handler(m)
	asked.Store(0)
	for range 10 * questionsASecond {
		for target, status := range map[string]int{
			"/?format=html": 200, "/?format=json": 200, "/": 200, aQuestion: 200, aQuestion + "&format=html": 200,
			"/?explain=boat": 400, "/?format=xml": 400,
		} {
			got := ask(h, "HEAD", target)
			require.Equal(t, status, got.StatusCode, target)
			require.NotEmpty(t, got.Header.Get("Content-Type"))
		}
	}
	require.Zero(t, asked.Load())
	require.Zero(t, h.(*page).snapshots.Made())
	require.Equal(t, 200, ask(h, "GET", aQuestion).StatusCode, "nor has it used up the questions")
}

// The form says what is wrong right where it was typed, and keeps it.
func TestPageKeepsAWrongQuestionInTheForm(t *testing.T) {
	h := Handler(busy(t))
	check := func(target string, status int, says ...string) {
		got := ask(h, "GET", target, "text/html")
		require.Equal(t, status, got.StatusCode)
		require.Equal(t, "text/html; charset=utf-8", got.Header.Get("Content-Type"))
		html := bodyOf(t, got)
		_, form, found := strings.Cut(html, `<details id="explain" open>`)
		require.True(t, found, "the form is open")
		form, after, _ := strings.Cut(form, "</details>")
		for _, text := range says {
			require.Contains(t, form, text)
		}
		require.Contains(t, after, `id="limits"`, "the page goes on below")
	}
	check("/?explain=stream&peer=me&protocol=/a%3Cb&memory=5", 400,
		`<p class="wrong" role="alert">peer is &#34;me&#34;, expected a peer ID</p>`, `value="me"`, `value="/a&lt;b"`, `value="5"`)
	check("/?explain=stream&protocol=/a", 400, "a stream needs a Peer", `value="/a"`)
	check(aQuestion, 200, `<table id="checks">`, "StreamsInbound", `action="#explain"`)
	for range questionsASecond {
		ask(h, "GET", aQuestion)
	}
	check(aQuestion, 429, "5 questions a second", `value="12D3KooWRpAPnRgC4qHPPkFkrwbCrjMJGHvRRJVMKGmvXaUEMMPL"`)
	require.Contains(t, bodyOf(t, ask(h, "GET", "/", "text/html")), `<details id="explain">`, "closed where nothing is asked")
}

func TestPageShowsTheFullestHoldersFirst(t *testing.T) {
	conf := unlimitedConf()
	conf.PeerDefault.Streams = 10
	wide := conf.PeerDefault
	wide.Streams = 100
	conf.Peer = map[peer.ID]BaseLimit{testPeers[0]: wide}
	conf.ProtocolDefault.Streams = 100
	m := newManager(t, conf)
	hold := func(p peer.ID, proto protocol.ID, n int) {
		for range n {
			s := mustOpenStream(t, m, p, network.DirInbound)
			t.Cleanup(s.Done)
			require.NoError(t, s.SetProtocol(proto))
		}
	}
	hold(testPeers[0], "/b", 9) // 9 %
	hold(testPeers[1], "/a", 2)
	hold(testPeers[2], "/c", 8)
	hold(testPeers[3], "/a", 5)
	names := []string{"protocol:/b", "protocol:/c", "protocol:/a"}
	peers := []string{"peer:" + testPeers[2].String(), "peer:" + testPeers[3].String(), "peer:" + testPeers[1].String(), "peer:" + testPeers[0].String()}
	for _, c := range []struct {
		format, heading string
		want            []string
	}{
		{"html", "Peers, the fullest first", slices.Concat(peers, names)},
		{"text", "Who holds what", slices.Concat(names, peers)},
	} {
		_, holders, found := strings.Cut(bodyOf(t, ask(Handler(m), "GET", "/?format="+c.format)), c.heading)
		require.True(t, found)
		last := 0
		for _, name := range c.want {
			at := strings.Index(holders, name)
			require.Greater(t, at, last, "%s: %s", c.format, name)
			last = at
		}
	}
}

// Rows of a node that is attacked by ten thousand peers would be several megabytes.
func TestAPageOfTenThousandPeersStaysSmall(t *testing.T) {
	conf := unlimitedConf()
	conf.PeerDefault.StreamsInbound = 8
	m := newManager(t, conf)
	for i := range 10_000 {
		s := mustOpenStream(t, m, peer.ID(fmt.Sprintf("\x00$%036d", i)), network.DirInbound)
		t.Cleanup(s.Done)
		require.NoError(t, s.SetProtocol(protocol.ID(fmt.Sprintf("/a/protocol/with/a/long/name/%d", i%600))))
	}
	h := Handler(m)
	for _, query := range []string{"", "&find=peer:", "&find=peer:&from=9900", "&find=protocol", "&find=nothing"} {
		got := ask(h, "GET", "/?format=html"+query)
		require.Equal(t, 200, got.StatusCode)
		require.Less(t, len(bodyOf(t, got)), 200_000, query)
	}
}

func TestScopesAreFoundByAPartOfTheirNames(t *testing.T) {
	m := newManager(t, unlimitedConf())
	var all []string
	for i := range 250 {
		id := peer.ID(fmt.Sprintf("\x00$%036d", i))
		s := mustOpenStream(t, m, id, network.DirInbound)
		t.Cleanup(s.Done)
		require.NoError(t, s.SetProtocol("/Ping"))
		all = append(all, "peer:"+id.String())
	}
	type answer struct {
		Snapshot
		Found int
	}
	find := func(query string) (names []string, found int) {
		got := ask(Handler(m), "GET", "/?format=json&"+query)
		body := bodyOf(t, got)
		require.Equal(t, 200, got.StatusCode, body)
		var a answer
		require.NoError(t, json.Unmarshal([]byte(body), &a))
		for i, s := range a.Scopes {
			if i < 4 {
				require.LessOrEqual(t, s.Kind, KindAllowlistedTransient)
				continue
			}
			names = append(names, s.Name)
		}
		return names, a.Found
	}
	one := all[17]
	for query, want := range map[string][]string{
		"find=" + one[len(one)-12:]:                  {one},
		"find=" + strings.ToUpper(one[len(one)-20:]): {one},
		"find=PING": {"protocol:/Ping"},
		"find=pong": nil,
	} {
		names, found := find(query)
		require.Equal(t, want, names, query)
		require.Len(t, want, found, query)
	}
	var seen []string
	for from := 0; from < 400; from += 100 {
		names, found := find(fmt.Sprintf("find=peer:&from=%d", from))
		require.Equal(t, 250, found)
		require.Len(t, names, min(100, max(0, 250-from)))
		seen = append(seen, names...)
	}
	require.ElementsMatch(t, all, seen, "each is listed once")

	names, _ := find("scope=" + one)
	require.Equal(t, []string{one}, names)
	names, _ = find("scope=protocol:/Ping")
	require.Equal(t, []string{"protocol:/Ping"}, names)
	names, _ = find("scope=system")
	require.Empty(t, names)
	for target, status := range map[string]int{
		"scope=peer:nobody": 404, "scope=protocol:/ping": 404, "scope=rubbish": 404, "scope=peer:": 404,
		"find=a&from=-1": 400, "find=a&from=x": 400, "find=a&from=99999999999999999999": 400,
		fmt.Sprint("find=a&from=", math.MaxInt): 200,
	} {
		require.Equal(t, status, ask(Handler(m), "GET", "/?format=json&"+target).StatusCode, target)
	}
}

func TestThePageLinksToOneScopeAndToFurtherPeers(t *testing.T) {
	m := busy(t)
	for i := range 150 {
		c, err := m.OpenConnection(network.DirOutbound, false, nil)
		require.NoError(t, err)
		t.Cleanup(c.Done)
		require.NoError(t, c.SetPeer(peer.ID(fmt.Sprintf("\x00$%036d", i))))
	}
	h := Handler(m)
	html := bodyOf(t, ask(h, "GET", "/?format=html"))
	require.Contains(t, html, `<a href="?format=html&amp;find=peer:">All peers, a hundred at a time</a>`)
	evilLink := `<a href="?scope=protocol%3a%2f%3cscript%3edocument.title%3d%22stolen%22%3c%2fscript%3e%2f%22%27%26">`
	require.Contains(t, html, evilLink)

	html = bodyOf(t, ask(h, "GET", "/?format=html&find=peer:"))
	require.Contains(t, html, `<h2>Found: 1 to 100 of 151</h2>`)
	require.Contains(t, html, `<a href="?format=html&amp;find=peer%3a&amp;from=100">The next hundred</a>`)
	html = bodyOf(t, ask(h, "GET", "/?format=html&find=peer:&from=100"))
	require.Contains(t, html, `<h2>Found: 101 to 151 of 151</h2>`)
	require.Contains(t, html, `<a href="?format=html&amp;find=peer%3a&amp;from=0">The hundred before</a>`)
	require.NotContains(t, html, "The next hundred")
	require.Contains(t, bodyOf(t, ask(h, "GET", "/?format=html&find=pong")), "nothing with this in its name")

	query := strings.TrimSuffix(strings.TrimPrefix(evilLink, `<a href="`), `">`)
	html = bodyOf(t, ask(h, "GET", "/"+query+"&format=html"))
	require.Contains(t, html, `<h2>protocol:/&lt;script&gt;`)
	require.Equal(t, 9, strings.Count(html, "<tr>"), "a row for each of its limits, and the heading")
	got := ask(h, "GET", "/?scope=protocol:/none&format=html")
	require.Equal(t, 404, got.StatusCode)
	require.Contains(t, bodyOf(t, got), `no scope has the name &#34;protocol:/none&#34; now`)
}

// A search looks at every peer, so a stranger could keep the processor busy with it.
func TestSearchesAreBoundedAsOtherQuestionsAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := New(NewFixedLimiter(InfiniteLimits))
		require.NoError(t, err)
		defer m.Close()
		h := Handler(m)
		for _, query := range []string{"find=a", "scope=system"} {
			answered := 0
			for range 101 { // ten seconds and the moment after
				got := ask(h, "GET", "/?"+query)
				if got.StatusCode == http.StatusOK {
					answered++
				} else {
					require.Equal(t, http.StatusTooManyRequests, got.StatusCode)
					require.Equal(t, "1", got.Header.Get("Retry-After"))
				}
				time.Sleep(100 * time.Millisecond)
			}
			require.LessOrEqual(t, answered, questionsASecond*(1+10)+1)
			require.GreaterOrEqual(t, answered, questionsASecond*10)
			time.Sleep(time.Minute)
		}
		require.Equal(t, 200, ask(h, "HEAD", "/?find=a").StatusCode)
		h = Handler(m)
		p := h.(*page)
		p.snapshots = webpage.NewCache(func() Snapshot { return Snapshot{Peers: 3 * peersAQuestion} })
		require.Equal(t, 200, ask(h, "GET", "/?find=a").StatusCode)
		require.Equal(t, 429, ask(h, "GET", "/?find=a").StatusCode, "among many peers, it is four questions")
	})
}

// Each refresh is the whole page, which is mostly the same words over and over.
func TestPageIsCompressedForThoseWhoCanRead(t *testing.T) {
	h := Handler(busy(t))
	get := func(accept ...string) *http.Response {
		r := httptest.NewRequest("GET", "/?format=html", nil)
		r.Header["Accept-Encoding"] = accept
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		require.Contains(t, w.Result().Header.Values("Vary"), "Accept-Encoding")
		require.Equal(t, strconv.Itoa(w.Body.Len()), w.Result().Header.Get("Content-Length"))
		return w.Result()
	}
	plain := bodyOf(t, get())
	for _, accept := range [][]string{nil, {"br"}, {"gzip;q=0"}, {"identity, gzip;q=0.0"}} {
		got := get(accept...)
		require.Empty(t, got.Header.Get("Content-Encoding"), "%v", accept)
		require.Equal(t, plain, bodyOf(t, got))
	}
	for _, accept := range [][]string{{"gzip"}, {"gzip, deflate, br, zstd"}, {"br", "GZIP;q=0.5"}, {"*"}} {
		got := get(accept...)
		require.Equal(t, "gzip", got.Header.Get("Content-Encoding"), "%v", accept)
		length, err := strconv.Atoi(got.Header.Get("Content-Length"))
		require.NoError(t, err)
		require.Less(t, length, len(plain)/2)
		z, err := gzip.NewReader(got.Body)
		require.NoError(t, err)
		text, err := io.ReadAll(z)
		require.NoError(t, err)
		require.Equal(t, plain, string(text))
	}
}

func TestAmountText(t *testing.T) {
	for want, u := range map[string]LimitUse{
		"1023": {Name: "Memory", Use: 1023}, "1.0 KiB": {Name: "Memory", Use: 1 << 10},
		"1.5 GiB": {Name: "Memory", Use: 3 << 29}, "8.0 EiB": {Name: "Memory", Use: 1<<63 - 2},
		"4096": {Name: "Conns", Use: 4096}, "unlimited": {Name: "Memory", Use: 1<<63 - 1},
	} {
		require.Equal(t, want, amountText(u.Name, u.Use))
	}
}

// The page in a real browser: its script must run under its own policy, and
// nothing else may.
func TestPageInABrowser(t *testing.T) {
	var asked atomic.Int64
	h := Handler(busy(t))
	page := inABrowser(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		h.ServeHTTP(w, r)
	}))
	require.True(t, strings.Contains(page, "<button>Scope</button>"), "the script has made the table sortable")
	require.False(t, strings.Contains(page, `class="stale"`))
	require.GreaterOrEqual(t, asked.Load(), int64(2), "and has come back for more")
	require.False(t, strings.Contains(page, "<title>stolen"))
}

// What is selected stays until it has been copied.
func TestThePageWaitsWhileTextIsSelected(t *testing.T) {
	var looks atomic.Int64
	m := busy(t)
	page := inABrowser(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := httptest.NewRecorder()
		Handler(m).ServeHTTP(answer, httptest.NewRequest("GET", "/?format=html", nil))
		text := strings.Replace(answer.Body.String(), "<h1>", fmt.Sprintf("<h1>look %d ", looks.Add(1)), 1)
		w.Header().Set("Content-Type", "text/html; charset=utf-8") // and no policy: the next script is not of the page
		io.WriteString(w, strings.Replace(text, "</body>",
			`<script>getSelection().selectAllChildren(document.querySelector("#limits tbody td"))</script></body>`, 1))
	}))
	require.True(t, strings.Contains(page, "look 1 "), "nothing was put in its place")
	require.True(t, strings.Contains(page, " · waits while text is selected"))
}

// inABrowser returns the page that a browser makes of a handler's in five seconds of
// its own time, or skips the test where there is no browser.
func inABrowser(t *testing.T, h http.Handler) string {
	browser := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			browser = found
		}
	}
	if browser == "" {
		t.Skip("no chromium on PATH")
	}
	server := httptest.NewServer(h)
	defer server.Close()
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	dom, err := exec.CommandContext(ctx, browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--user-data-dir="+t.TempDir(),
		"--virtual-time-budget=5000", "--dump-dom", server.URL+"/?format=html").Output()
	require.NoError(t, err)
	return string(dom)
}

// The page and the text leave out limits that nothing can count in, and the allowlisted scopes
// while nothing has used them.
func TestThePageHidesLimitsThatNothingCanReach(t *testing.T) {
	m := newManager(t, unlimitedConf(), WithAllowlistedMultiaddrs([]multiaddr.Multiaddr{mustMA(t, "/ip4/192.0.2.1")}))
	s, err := m.OpenStream(testPeer, network.DirInbound)
	require.NoError(t, err)
	require.NoError(t, s.SetProtocol(testProto))
	bodies := func(query string) map[string]string {
		all := make(map[string]string)
		for _, format := range []string{"html", "text"} {
			w := httptest.NewRecorder()
			Handler(m).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/?format="+format+query, nil))
			all[format] = w.Body.String()
		}
		return all
	}
	row := regexp.QuoteMeta("protocol:"+string(testProto)) + `(</a></td><td>| +)`
	for format, body := range bodies("") {
		require.NotContains(t, body, "allowlistedSystem", format)
		require.Regexp(t, row+"StreamsInbound", body, format)
		require.NotRegexp(t, row+"(Conns|FD)", body, format)
	}
	require.Contains(t, bodies("&scope=allowlistedSystem")["html"], "allowlistedSystem")

	conf := unlimitedConf()
	conf.System.ConnsInbound = 0
	m = newManager(t, conf, WithAllowlistedMultiaddrs([]multiaddr.Multiaddr{mustMA(t, "/ip4/192.0.2.1")}))
	_, err = m.OpenConnection(network.DirInbound, false, mustMA(t, "/ip4/192.0.2.1/tcp/1"))
	require.NoError(t, err)
	for format, body := range bodies("") {
		require.Contains(t, body, "allowlistedSystem", format)
	}
}
