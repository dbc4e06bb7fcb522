// Package webpage answers requests for what operators look at: in a browser, in a terminal and
// in programs, under one address. A handler of this kind changes nothing, is never cached on the
// way, loads nothing from other servers, and sends a body only if all of it could be made.
package webpage

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"iter"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Format is the form of an answer: HTML, JSON or Text.
type Format string

// The formats, as the query ?format= names them.
const (
	HTML Format = "html"
	JSON Format = "json"
	Text Format = "text"
)

var contentTypes = map[Format]string{
	HTML: "text/html; charset=utf-8", JSON: "application/json", Text: "text/plain; charset=utf-8",
}

// Answer is what a request is answered with.
type Answer struct {
	Status     int // 0 means http.StatusOK
	RetryAfter int // seconds after which the client may ask again; 0 leaves the header out
	// Err is sent as plain text in place of a body, unless it is nil.
	Err error
	// Write writes the body. It is not called for a HEAD request.
	Write func(io.Writer) error
}

// Policy returns a Content-Security-Policy under which a page can use nothing but this style and
// this script, which may fetch the page again. Without a script, "" in its place, the page cannot
// send forms either.
func Policy(style, script string) string {
	policy := "default-src 'none'; img-src data:; style-src " + sum(style) + "; base-uri 'none'; frame-ancestors 'none'; "
	if script == "" {
		return policy + "form-action 'none'"
	}
	return policy + "connect-src 'self'; script-src " + sum(script) + "; form-action 'self'"
}

func sum(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// Serve answers a request with what answer returns for the format that the client wants. It
// calls answer for GET and HEAD requests with a format that exists.
func Serve(w http.ResponseWriter, r *http.Request, policy string, answer func(Format) Answer) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Content-Security-Policy", policy)
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD are answered", http.StatusMethodNotAllowed)
		return
	}
	format := Format(r.URL.Query().Get("format"))
	if format == "" {
		format = preferredFormat(r.Header.Values("Accept"))
		h.Add("Vary", "Accept")
	}
	contentType, ok := contentTypes[format]
	if !ok {
		http.Error(w, fmt.Sprintf("format is %q, expected html, text or json", format), http.StatusBadRequest)
		return
	}
	a := answer(format)
	if a.Status == 0 {
		a.Status = http.StatusOK
	}
	if a.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(a.RetryAfter))
	}
	if a.Err != nil {
		http.Error(w, a.Err.Error(), a.Status)
		return
	}
	h.Set("Content-Type", contentType)
	h.Add("Vary", "Accept-Encoding")
	zipped := acceptsGzip(r.Header.Values("Accept-Encoding"))
	if zipped {
		h.Set("Content-Encoding", "gzip")
	}
	if r.Method == http.MethodHead {
		w.WriteHeader(a.Status)
		return
	}
	body, err := render(a.Write, zipped)
	if err != nil {
		h.Del("Content-Encoding")
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(a.Status)
	w.Write(body)
}

// render returns the whole body of an answer. It is not sent until it is complete, so
// that no error follows half of it.
func render(write func(io.Writer) error, zipped bool) ([]byte, error) {
	var body bytes.Buffer
	if !zipped {
		err := write(&body)
		return body.Bytes(), err
	}
	z := gzip.NewWriter(&body)
	err := errors.Join(write(z), z.Close())
	return body.Bytes(), err
}

// preferences returns, in their order, the values that headers such as Accept and
// Accept-Encoding list, each with its weight (RFC 9110, section 12.4.2).
func preferences(headers []string) iter.Seq2[string, float64] {
	return func(yield func(string, float64) bool) {
		for _, part := range strings.Split(strings.Join(headers, ","), ",") {
			name, params, err := mime.ParseMediaType(part)
			if err != nil {
				continue
			}
			weight := 1.0
			if given, ok := params["q"]; ok {
				weight, _ = strconv.ParseFloat(given, 64)
			}
			if !yield(name, weight) {
				return
			}
		}
	}
}

// preferredFormat returns the format that the client prefers, and Text if it has no
// preference.
func preferredFormat(accept []string) Format {
	best, most := Text, 0.0
	for media, weight := range preferences(accept) {
		format := map[string]Format{
			"text/html": HTML, "application/xhtml+xml": HTML, "application/json": JSON,
			"text/plain": Text, "text/*": Text, "*/*": Text,
		}[media]
		if format != "" && weight > most {
			best, most = format, weight
		}
	}
	return best
}

// acceptsGzip reports whether the client accepts gzip.
func acceptsGzip(accept []string) bool {
	for coding, weight := range preferences(accept) {
		if coding == "gzip" || coding == "*" {
			return weight > 0
		}
	}
	return false
}

const (
	// Fresh is how long one value of a Cache serves all requests at least.
	Fresh = time.Second
	// mostFresh is how long it does at most.
	mostFresh = 10 * time.Second
	// rest is how many times as long as it takes to make a value the next one waits, so that
	// no more than a sixtieth of a processor goes into it.
	rest = 60
)

// Cache holds a value that is costly to make, so that it is made at most once in Fresh, however
// many clients ask, and more seldom if it takes long. It is safe for concurrent use.
type Cache[T any] struct {
	make func() T

	mu    sync.Mutex
	last  T
	until time.Time
	made  int
}

// NewCache returns a Cache of what f returns.
func NewCache[T any](f func() T) *Cache[T] { return &Cache[T]{make: f} }

// Get returns the value, and makes a new one if the last one is out of date.
func (c *Cache[T]) Get() T {
	c.mu.Lock()
	defer c.mu.Unlock()
	if began := time.Now(); !began.Before(c.until) {
		c.last = c.make()
		end := time.Now()
		c.until = end.Add(min(max(Fresh, rest*end.Sub(began)), mostFresh))
		c.made++
	}
	return c.last
}

// Made returns how many values have been made.
func (c *Cache[T]) Made() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.made
}
