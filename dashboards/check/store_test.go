package check

// What a Prometheus that scrapes a registry would know: the samples of every
// series, as its own parser reads them, and its engine to ask about them.

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
	"github.com/stretchr/testify/require"
)

// The target that the samples are scraped from.
const (
	job      = "rcmgr"
	instance = "127.0.0.1:8080"
)

// store has all samples that were scraped. It is filled by one goroutine, and
// only read afterwards.
type store struct {
	series map[string]*promql.Series // by the text of their labels
	last   map[string]bool           // those that the last scrape had
}

func newStore() *store { return &store{series: make(map[string]*promql.Series)} }

// scrape takes what a handler of metrics serves as the samples of this moment.
// A series that was there the last time and is not now is stale.
func (s *store) scrape(t *testing.T, metrics http.Handler, now time.Time) {
	t.Helper()
	answer := httptest.NewRecorder()
	metrics.ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	require.Equal(t, http.StatusOK, answer.Code, answer.Body.String())
	p, err := textparse.New(bytes.TrimSpace(append(answer.Body.Bytes(), "\nup 1\n"...)),
		answer.Header().Get("Content-Type"), labels.NewSymbolTable(), textparse.ParserOptions{})
	require.NoError(t, err)
	before := s.last
	s.last = make(map[string]bool)
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		if entry != textparse.EntrySeries {
			continue
		}
		var of labels.Labels
		p.Labels(&of)
		_, _, v := p.Series()
		of = labels.NewBuilder(of).Set("job", job).Set("instance", instance).Labels()
		s.last[of.String()] = true
		s.add(of, now, v)
	}
	for key := range before {
		if !s.last[key] {
			s.add(s.series[key].Metric, now, math.Float64frombits(value.StaleNaN))
		}
	}
}

func (s *store) add(of labels.Labels, now time.Time, v float64) {
	key := of.String()
	if s.series[key] == nil {
		s.series[key] = &promql.Series{Metric: of}
	}
	s.series[key].Floats = append(s.series[key].Floats, promql.FPoint{T: now.UnixMilli(), F: v})
}

// matching returns the series that match, sorted by their labels.
func (s *store) matching(matchers ...*labels.Matcher) (found []*promql.Series) {
	for _, series := range s.series {
		if !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(series.Metric.Get(m.Name)) }) {
			found = append(found, series)
		}
	}
	slices.SortFunc(found, func(a, b *promql.Series) int { return labels.Compare(a.Metric, b.Metric) })
	return found
}

// Querier makes a store what the engine can ask.
func (s *store) Querier(_, _ int64) (storage.Querier, error) { return querier{s}, nil }

type querier struct{ *store }

func (q querier) Select(_ context.Context, _ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	return &seriesSet{left: q.matching(matchers...)}
}

func (q querier) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, errors.New("no query asks this")
}

func (q querier) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, errors.New("no query asks this")
}

func (q querier) Close() error { return nil }

type seriesSet struct {
	left []*promql.Series
	at   *promql.Series
}

func (s *seriesSet) Next() bool {
	if len(s.left) == 0 {
		return false
	}
	s.at, s.left = s.left[0], s.left[1:]
	return true
}

func (s *seriesSet) At() storage.Series                { return promql.NewStorageSeries(*s.at) }
func (s *seriesSet) Err() error                        { return nil }
func (s *seriesSet) Warnings() annotations.Annotations { return nil }

var (
	queries = parser.NewParser(parser.Options{})
	engine  = promql.NewEngine(promql.EngineOpts{
		MaxSamples: 10_000_000, Timeout: time.Minute, LookbackDelta: 5 * time.Minute, Parser: queries,
	})
)

// ask evaluates a query at a moment. What it gives has no NaN: a panel shows
// nothing for it.
func (s *store) ask(expr string, at time.Time) (promql.Vector, error) {
	q, err := engine.NewInstantQuery(context.Background(), s, nil, expr, at)
	if err != nil {
		return nil, err
	}
	defer q.Close()
	result := q.Exec(context.Background())
	if result.Err != nil {
		return nil, result.Err
	}
	found, err := result.Vector()
	return slices.DeleteFunc(slices.Clone(found), func(sample promql.Sample) bool { return math.IsNaN(sample.F) }), err
}
