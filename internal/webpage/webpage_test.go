package webpage

import (
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// ask returns the response of Serve with an answer, and the formats that it was asked for.
func ask(a Answer, method, target string, headers ...string) (w *httptest.ResponseRecorder, asked []Format) {
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	w = httptest.NewRecorder()
	Serve(w, r, Policy("p {}", ""), func(f Format) Answer {
		asked = append(asked, f)
		return a
	})
	return w, asked
}

func says(text string) Answer {
	return Answer{Write: func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	}}
}

func TestAClientGetsTheFormatThatItPrefers(t *testing.T) {
	for _, c := range []struct {
		target, accept string
		want           Format
	}{
		{"/", "", Text},
		{"/", "*/*", Text},
		{"/", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", HTML},
		{"/", "text/html;q=0.5, application/json", JSON},
		{"/", "application/json;q=0", Text},
		{"/?format=json", "text/html", JSON},
	} {
		w, asked := ask(says("hello"), "GET", c.target, "Accept", c.accept)
		require.Equal(t, []Format{c.want}, asked, "%s %s", c.target, c.accept)
		require.Equal(t, contentTypes[c.want], w.Header().Get("Content-Type"))
		require.Equal(t, "hello", w.Body.String())
		require.Equal(t, !strings.Contains(c.target, "format="), strings.Contains(w.Header().Get("Vary"), "Accept,") ||
			w.Header().Values("Vary")[0] == "Accept")
	}
	w, asked := ask(says("hello"), "GET", "/?format=xml")
	require.Equal(t, http.StatusBadRequest, w.Code)
	require.Equal(t, "format is \"xml\", expected html, text or json\n", w.Body.String())
	require.Empty(t, asked)
}

func TestNothingButGetAndHeadIsAnswered(t *testing.T) {
	w, asked := ask(says("hello"), "POST", "/")
	require.Equal(t, http.StatusMethodNotAllowed, w.Code)
	require.Equal(t, "GET, HEAD", w.Header().Get("Allow"))
	require.Empty(t, asked)

	w, asked = ask(Answer{Write: func(io.Writer) error { panic("not for a header") }}, "HEAD", "/?format=html")
	require.Equal(t, http.StatusOK, w.Code)
	require.Equal(t, []Format{HTML}, asked)
	require.Empty(t, w.Body.String())
}

// Half a page with the status 200 would pass for a whole one.
func TestABodyThatCannotBeMadeIsNotSentInPart(t *testing.T) {
	a := Answer{Write: func(w io.Writer) error {
		io.WriteString(w, "half")
		return errors.New("no more")
	}}
	w, _ := ask(a, "GET", "/", "Accept-Encoding", "gzip")
	require.Equal(t, http.StatusInternalServerError, w.Code)
	require.Equal(t, "no more\n", w.Body.String())
	require.Empty(t, w.Header().Get("Content-Encoding"))
}

func TestABodyIsCompressedForAClientThatReadsGzip(t *testing.T) {
	for accept, zipped := range map[string]bool{"": false, "br": false, "gzip;q=0": false, "gzip": true, "*": true, "br, GZIP;q=0.5": true} {
		w, _ := ask(says("hello"), "GET", "/", "Accept-Encoding", accept)
		require.Contains(t, w.Header().Values("Vary"), "Accept-Encoding")
		body := io.Reader(w.Body)
		if zipped {
			require.Equal(t, "gzip", w.Header().Get("Content-Encoding"), accept)
			z, err := gzip.NewReader(body)
			require.NoError(t, err)
			body = z
		}
		text, err := io.ReadAll(body)
		require.NoError(t, err)
		require.Equal(t, "hello", string(text), accept)
	}
}

func TestAnErrorKeepsItsStatus(t *testing.T) {
	w, _ := ask(Answer{Status: http.StatusTooManyRequests, RetryAfter: 2, Err: errors.New("later")}, "GET", "/")
	require.Equal(t, http.StatusTooManyRequests, w.Code)
	require.Equal(t, "2", w.Header().Get("Retry-After"))
	require.Equal(t, "later\n", w.Body.String())
}

func TestAPageUsesNothingButItsOwnStyleAndScript(t *testing.T) {
	require.NotContains(t, Policy("style", ""), "script")
	require.Contains(t, Policy("style", ""), "form-action 'none'")
	require.Contains(t, Policy("style", "script"), "script-src "+sum("script")+";")
	for _, p := range []string{Policy("style", ""), Policy("style", "script")} {
		require.Contains(t, p, "default-src 'none'; ")
		require.Contains(t, p, "style-src "+sum("style")+";")
		require.Contains(t, p, "frame-ancestors 'none'")
	}
}

// What takes long to make is made more seldom, so that it never takes much of a processor.
func TestAValueIsMadeOnceInAWhileForAllClients(t *testing.T) {
	for takes, fresh := range map[time.Duration]time.Duration{
		0: Fresh, Fresh / rest: Fresh, 50 * time.Millisecond: 3 * time.Second, time.Minute: mostFresh,
	} {
		synctest.Test(t, func(t *testing.T) {
			made := 0
			c := NewCache(func() int {
				time.Sleep(takes)
				made++
				return made
			})
			require.Zero(t, c.Made())
			for want := 1; want <= 3; want++ {
				for range 10 {
					require.Equal(t, want, c.Get(), "takes %v", takes)
					time.Sleep(fresh / 10)
				}
				require.Equal(t, want, c.Made())
			}
		})
	}
}
