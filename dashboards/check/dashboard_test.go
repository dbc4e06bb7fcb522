package check

// A dashboard as Grafana would ask for it: its queries, with its variables
// replaced by all that they stand for.

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"
)

// dashboard is what concerns queries in Grafana's model of a dashboard.
type dashboard struct {
	Panels     []panel
	Templating struct{ List []variable }
}

type panel struct {
	Title       string
	FieldConfig struct{ Defaults struct{ Unit string } }
	Targets     []struct{ Expr, LegendFormat string }
	Panels      []panel // of a row that is folded
}

type variable struct {
	Name, Type, Definition string
}

// question is one query of a panel.
type question struct{ panel, expr, legend string }

func readDashboard(t *testing.T, file string) *dashboard {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	var d dashboard
	require.NoError(t, json.Unmarshal(text, &d), file)
	return &d
}

func questionsOf(panels []panel) (all []question) {
	for _, p := range panels {
		for _, target := range p.Targets {
			all = append(all, question{p.Title, target.Expr, target.LegendFormat})
		}
		all = append(all, questionsOf(p.Panels)...)
	}
	return all
}

var labelValues = regexp.MustCompile(`^label_values\((.+), *(\w+)\)$`)

// variables returns what each variable is replaced by: all that it can stand for.
// In the order of a dashboard, one may be in the query of the next.
func (d *dashboard) variables(s *store, at time.Time) (*strings.Replacer, error) {
	values := []string{"$__rate_interval", "1m", "$__interval", "15s", "$__range", "20m"}
	for _, v := range d.Templating.List {
		if v.Type == "datasource" {
			continue // is in no query
		}
		asked := labelValues.FindStringSubmatch(v.Definition)
		if v.Type != "query" || asked == nil {
			return nil, fmt.Errorf("variable %s: type %q and definition %q are not understood", v.Name, v.Type, v.Definition)
		}
		found, err := s.ask(strings.NewReplacer(values...).Replace(asked[1]), at)
		if err != nil {
			return nil, fmt.Errorf("variable %s: %w", v.Name, err)
		}
		var all []string
		for _, sample := range found {
			all = append(all, regexp.QuoteMeta(sample.Metric.Get(asked[2])))
		}
		slices.Sort(all)
		all = slices.Compact(all)
		if len(all) == 0 || all[0] == "" {
			return nil, fmt.Errorf("variable %s has no values", v.Name)
		}
		// In a query, a backslash stands within quotes.
		values = append(values, "$"+v.Name, strings.ReplaceAll("("+strings.Join(all, "|")+")", `\`, `\\`))
	}
	return strings.NewReplacer(values...), nil
}

// unanswered returns the questions that cannot be asked or find nothing, and what
// is wrong with them. What legends name has to be a label of some series.
func (d *dashboard) unanswered(s *store, at time.Time) (map[question]string, error) {
	replace, err := d.variables(s, at)
	if err != nil {
		return nil, err
	}
	wrong := make(map[question]string)
	for _, q := range questionsOf(d.Panels) {
		found, err := s.ask(replace.Replace(q.expr), at)
		switch {
		case err != nil:
			wrong[q] = err.Error()
		case len(found) == 0:
			wrong[q] = "finds nothing"
		default:
			seen := make(map[string]bool)
			for _, sample := range found {
				sample.Metric.Range(func(l labels.Label) { seen[l.Name] = true })
			}
			for _, m := range legendLabel.FindAllStringSubmatch(q.legend, -1) {
				if !seen[m[1]] {
					wrong[q] = "its legend names " + m[1] + ", which no series has"
				}
			}
		}
	}
	return wrong, nil
}

var legendLabel = regexp.MustCompile(`\{\{\s*(\w+)\s*\}\}`)
