package main

// Where snapshots come from: the page of a node, or a file.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/internal/text"
)

// mostBytes is the largest size of a snapshot that is read.
const mostBytes = 512 << 20

// isURL reports whether a source is the address of a page.
func isURL(source string) bool {
	return strings.HasPrefix(source, "http://") || strings.HasPrefix(source, "https://")
}

// fetch returns the answer of a page in JSON. It adds query to the address.
func (a *app) fetch(ctx context.Context, source string, query url.Values) ([]byte, error) {
	at, err := url.Parse(source)
	if err != nil || at.Host == "" {
		return nil, usage("invalid address %q: expected one such as http://127.0.0.1:6060/rcmgr", nameOf(source))
	}
	asked := at.Query()
	for key, values := range query {
		asked[key] = values
	}
	asked.Set("format", "json")
	at.RawQuery = asked.Encode()
	ctx, stop := context.WithTimeout(ctx, a.timeout)
	defer stop()
	for {
		body, again, err := a.ask(ctx, source, at)
		if again == 0 || err == nil {
			return body, err
		}
		select { // a page answers few questions a second
		case <-ctx.Done():
			return nil, err
		case <-time.After(again):
		}
	}
}

// ask asks a page once. again is when it may be asked again, if it has been asked too often.
func (a *app) ask(ctx context.Context, source string, at *url.URL) (body []byte, again time.Duration, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return nil, 0, err
	}
	r.Header.Set("Accept", "application/json")
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", nameOf(source), a.plain(err))
	}
	defer answer.Body.Close()
	body, err = readAll(answer.Body)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", nameOf(source), a.plain(err))
	}
	if answer.StatusCode != http.StatusOK {
		said, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
		if !strings.HasPrefix(answer.Header.Get("Content-Type"), "text/plain") || len(said) > 300 {
			said = "is it the page of a resource manager?"
		}
		if said == "404 page not found" && !strings.HasSuffix(at.Path, "/rcmgr") { // what net/http answers where nothing is served
			said += "; is the page at " + at.Scheme + "://" + at.Host + "/rcmgr?"
		}
		err := fmt.Errorf("%s: the answer is %s: %s", nameOf(source), answer.Status, text.Printable(said))
		if seconds, wrong := strconv.Atoi(answer.Header.Get("Retry-After")); answer.StatusCode == http.StatusTooManyRequests && wrong == nil {
			return nil, time.Duration(max(1, seconds)) * time.Second, err
		}
		if answer.StatusCode == http.StatusBadRequest && at.Query().Has("explain") {
			return nil, 0, &outcome{exitUsage, err}
		}
		return nil, 0, err
	}
	return body, 0, nil
}

// plain returns an error of the network in plain words.
func (a *app) plain(err error) error {
	var at *url.Error
	if errors.As(err, &at) {
		err = at.Err
	}
	var asked net.Error
	var lookUp *net.DNSError
	switch {
	case errors.Is(err, context.Canceled):
		return errInterrupted
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &asked) && asked.Timeout():
		return fmt.Errorf("no answer in %v; --timeout waits longer", a.timeout)
	case errors.As(err, &lookUp):
		return fmt.Errorf("no host has the name %q", lookUp.Name)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the answer is cut off")
	case errors.Is(err, io.EOF):
		return errors.New("it has closed the connection without an answer")
	}
	return err
}

func readAll(r io.Reader) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r, mostBytes+1))
	if err == nil && len(body) > mostBytes {
		err = fmt.Errorf("it has more than %s, which no snapshot has", text.Bytes(mostBytes))
	}
	return body, err
}

// load returns the text of a source.
func (a *app) load(ctx context.Context, source string, query url.Values) ([]byte, error) {
	if isURL(source) {
		return a.fetch(ctx, source, query)
	}
	return within(ctx, nameOf(source), func() ([]byte, error) {
		f, err := a.open(source)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		body, err := readAll(f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", nameOf(source), err)
		}
		return body, nil
	})
}

// open opens a file that the command line names, or the standard input for -.
func (a *app) open(name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(a.in), nil
	}
	return openFile(name)
}

// snapshot returns the snapshot of a source, and its text.
func (a *app) snapshot(ctx context.Context, source string, query url.Values) (*rcmgr.Snapshot, []byte, error) {
	body, err := a.load(ctx, source, query)
	if err != nil {
		return nil, nil, err
	}
	s, err := parse(body)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", nameOf(source), err)
	}
	return s, body, nil
}

// nameOf returns what a source is called in what is printed: never with its password.
func nameOf(source string) string {
	if source == "-" {
		return "standard input"
	}
	if !isURL(source) {
		return source
	}
	if at, err := url.Parse(source); err == nil {
		if at.User == nil {
			return source
		}
		return at.Redacted()
	}
	scheme, rest, _ := strings.Cut(source, "://")
	if _, after, found := text.CutLast(rest, "@"); found { // whatever is before it
		return scheme + "://xxxxx@" + after
	}
	return source
}

// parse reads the JSON of a snapshot.
func parse(body []byte) (*rcmgr.Snapshot, error) {
	body = bytes.TrimPrefix(body, []byte("\xef\xbb\xbf"))
	trimmed := bytes.TrimSpace(body)
	if len(trimmed) == 0 {
		return nil, errors.New("it is empty")
	}
	if trimmed[0] != '{' {
		return nil, errors.New("it is no snapshot: expected JSON as \"rcmgr snapshot\" writes it")
	}
	var s rcmgr.Snapshot
	err := json.Unmarshal(trimmed, &s)
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax) && syntax.Offset >= int64(len(trimmed)):
		return nil, fmt.Errorf("the snapshot is cut off after %d bytes", len(body))
	case errors.As(err, &syntax):
		return nil, fmt.Errorf("it is no snapshot: byte %d: %w", syntax.Offset, err)
	case err != nil:
		return nil, fmt.Errorf("it is no snapshot that this version reads: %w", err)
	case s.Taken.IsZero() || !slices.ContainsFunc(s.Scopes, func(sc rcmgr.ScopeState) bool { return sc.Kind == rcmgr.KindSystem && sc.Name == "system" }):
		return nil, errors.New("it is no snapshot of a resource manager: expected Taken, and Scopes with the system scope")
	}
	return &s, nil
}

// narrowed deletes the scopes of a snapshot whose names do not contain a text, and the first from of
// those that do. The four scopes that always exist stay.
func narrowed(s *rcmgr.Snapshot, find string, from int) {
	find = strings.ToLower(find)
	s.Scopes = slices.DeleteFunc(s.Scopes, func(sc rcmgr.ScopeState) bool {
		if sc.Kind <= rcmgr.KindAllowlistedTransient {
			return false
		}
		if !strings.Contains(strings.ToLower(sc.Name), find) {
			return true
		}
		from--
		return from >= 0
	})
}

// found returns the snapshot of a source with the scopes that a search finds, and the whole one: what
// stands in the way does so whatever is looked for.
func (a *app) found(ctx context.Context, source, find string, from int) (found, whole *rcmgr.Snapshot, err error) {
	query, err := findQuery(find, from)
	if err != nil {
		return nil, nil, err
	}
	whole, _, err = a.snapshot(ctx, source, nil)
	if err != nil || find == "" {
		return whole, whole, err
	}
	if isURL(source) {
		found, _, err = a.snapshot(ctx, source, query)
		return found, whole, err
	}
	s := *whole
	s.Scopes = slices.Clone(s.Scopes)
	narrowed(&s, find, from)
	return &s, whole, nil
}

func (a *app) snapshotCommand() *cobra.Command {
	var find string
	var from int
	c := &cobra.Command{
		Use:   "snapshot SOURCE",
		Short: "Write a snapshot of a node, for others or for later",
		Long: `Write a snapshot of a node as JSON, for other commands to read later, or
elsewhere.

It has the IDs of peers and the addresses of subnets: look at it before you
publish it. Of very many peers it has the fullest.`,
		Example: "  rcmgr snapshot http://127.0.0.1:6060/rcmgr > node.json\n  rcmgr top node.json",
		Args:    arguments(1, 1, "one source: a page, the file of a snapshot, or - for one on the standard input"),
		RunE: func(cmd *cobra.Command, args []string) error {
			query, err := findQuery(find, from)
			if err != nil {
				return err
			}
			_, body, err := a.snapshot(cmd.Context(), args[0], query)
			if err != nil {
				return err
			}
			_, err = a.out.Write(body)
			return err
		},
	}
	findFlags(c, &find, &from)
	return c
}

// findFlags defines the flags that choose scopes by name.
func findFlags(c *cobra.Command, find *string, from *int) {
	c.Flags().StringVar(find, "find", "", "only services, protocols and peers with this `text` in their names, a hundred of them; peer: stands for all peers")
	c.Flags().Var(ranged[int]{from, 0, math.MaxInt}, "from", "leave out the first `number` of those that were found")
}

// findQuery returns the query of a page for the flags of findFlags.
func findQuery(find string, from int) (url.Values, error) {
	switch {
	case find == "" && from > 0:
		return nil, usage("--from is for --find: expected --find peer: for all peers")
	case find == "":
		return nil, nil
	}
	return url.Values{"find": {find}, "from": {fmt.Sprint(from)}}, nil
}
