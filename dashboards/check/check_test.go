package check

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/grafana/grafana-foundation-sdk/go/bargauge"
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	grafana "github.com/grafana/grafana-foundation-sdk/go/dashboard"
	grafanaprometheus "github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
	"github.com/stretchr/testify/require"
)

const (
	dashboardFile = "../rcmgr.json"
	alertsFile    = "../alerts.yml"
)

func TestEveryQueryOfTheDashboardFindsDataAfterAFlood(t *testing.T) {
	d, r := readDashboard(t, dashboardFile), record(t)
	require.NotEmpty(t, questionsOf(d.Panels))
	wrong, err := d.unanswered(r.store, r.flooded)
	require.NoError(t, err)
	for q, why := range wrong {
		t.Errorf("%s: %s: %s", q.panel, q.expr, why)
	}
}

// findNothing are the queries of go-libp2p's dashboard that find nothing, and why.
var findNothing = map[string]string{
	`libp2p_rcmgr_memory{scope="service",instance=~"$instance"}`: "no manager has this series, go-libp2p's own neither: " +
		"the family has no label for a service's name. libp2p_rcmgr_scope_use has the memory of services",
}

func TestEveryQueryOfGoLibp2psDashboardFindsDataAfterAFlood(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/libp2p/go-libp2p").Output()
	require.NoError(t, err)
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "dashboards", "resource-manager", "*.json"))
	require.NoError(t, err)
	require.NotEmpty(t, files, "go-libp2p has its dashboard elsewhere")
	r := record(t)
	empty := make(map[string]bool)
	for _, file := range files {
		d := readDashboard(t, file)
		require.NotEmpty(t, questionsOf(d.Panels), file)
		wrong, err := d.unanswered(r.store, r.flooded)
		require.NoError(t, err, file)
		for q, why := range wrong {
			if empty[q.expr] = true; findNothing[q.expr] == "" {
				t.Errorf("%s: %s: %s", q.panel, q.expr, why)
			}
		}
	}
	for expr := range findNothing {
		require.True(t, empty[expr], "finds data after all: %s", expr)
	}
}

// A check that finds nothing wrong with a wrong dashboard would be none.
func TestWrongQueriesAreFound(t *testing.T) {
	r := record(t)
	for expr, want := range map[string]string{
		"libp2p_rcmgr_peers":                                "",
		"libp2p_rcmgr_perrs":                                "finds nothing",
		`libp2p_rcmgr_scope_use{scope="sistem"}`:            "finds nothing",
		`libp2p_rcmgr_peers{instance=~"$elsewhere"}`:        "finds nothing",
		"0 * libp2p_rcmgr_peers / (0 * libp2p_rcmgr_peers)": "finds nothing",
		"sum(libp2p_rcmgr_peers":                            "parse error",
	} {
		d := &dashboard{Panels: []panel{{Panels: []panel{{Targets: []struct{ Expr, LegendFormat string }{{expr, "{{instance}}"}}}}}}}
		wrong, err := d.unanswered(r.store, r.flooded)
		require.NoError(t, err)
		if why := wrong[question{"", expr, "{{instance}}"}]; want == "" {
			require.Empty(t, why, expr)
		} else {
			require.Contains(t, why, want, expr)
		}
	}
	d := &dashboard{Panels: []panel{{Targets: []struct{ Expr, LegendFormat string }{{"libp2p_rcmgr_peers", "{{scope}}"}}}}}
	wrong, err := d.unanswered(r.store, r.flooded)
	require.NoError(t, err)
	require.Len(t, wrong, 1)
	for definition, want := range map[string]string{
		"label_values(libp2p_rcmgr_perrs, instance)": "no values",
		"label_values(libp2p_rcmgr_peers, host)":     "no values",
		"names()":                                    "not understood",
	} {
		var d dashboard
		d.Templating.List = []variable{{"v", "query", definition}}
		_, err := d.unanswered(r.store, r.flooded)
		require.ErrorContains(t, err, want)
	}
}

var familyName = regexp.MustCompile(`libp2p_rcmgr_\w+`)

// What the package shows beside go-libp2p's families is there to be looked at.
func TestTheDashboardShowsEveryFamilyOfOurs(t *testing.T) {
	shown := make(map[string]bool)
	for _, q := range questionsOf(readDashboard(t, dashboardFile).Panels) {
		for _, name := range familyName.FindAllString(q.expr, -1) {
			shown[name] = true
		}
	}
	chapter, err := os.ReadFile("../../docs/metrics.md")
	require.NoError(t, err)
	_, families, _ := strings.Cut(string(chapter), "\n| family | labels | what |\n")
	families, _, _ = strings.Cut(families, "\n\n")
	named := 0
	for line := range strings.Lines(families) {
		for _, name := range regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(strings.Split(line, "|")[1], -1) {
			named++
			require.True(t, shown["libp2p_rcmgr_"+name[1]], "%s is on no panel", name[1])
		}
	}
	require.NotZero(t, named)
}

// inBytes matches the families whose amounts are bytes for some of their series.
var inBytes = regexp.MustCompile(`libp2p_rcmgr_(scope_(use|limit|peak)|class_limit|member_(recent_)?peak|(peer|conn|process)_memory(_bucket)?)\{`)

// A panel of bytes says so, and one of numbers has no bytes in it.
func TestBytesAreShownAsBytes(t *testing.T) {
	d, r := readDashboard(t, dashboardFile), record(t)
	replace, err := d.variables(r.store, r.flooded)
	require.NoError(t, err)
	bytes := 0
	for _, p := range d.Panels {
		unit := p.FieldConfig.Defaults.Unit
		for _, target := range p.Targets {
			if !inBytes.MatchString(target.Expr) || unit == "percentunit" || strings.HasPrefix(target.Expr, "count(") {
				continue
			}
			memory := regexp.MustCompile(`(peer|conn|process)_memory`).MatchString(target.Expr) || strings.Contains(target.Expr, `resource="memory"`)
			found, err := r.ask(replace.Replace(target.Expr), r.flooded)
			require.NoError(t, err)
			for _, sample := range found {
				if resource := sample.Metric.Get("resource"); resource != "" {
					memory = resource == "memory"
				}
				require.Equal(t, memory, unit == "bytes", "%s: %s has the unit %q", p.Title, target.Expr, unit)
			}
			if memory {
				bytes++
			}
		}
	}
	require.Greater(t, bytes, 10)
}

// What one peer holds is never drawn above what it may hold.
func TestTheDashboardDrawsNoPeerAboveItsLimit(t *testing.T) {
	d, r := readDashboard(t, dashboardFile), record(t)
	checked := 0
	for _, at := range []time.Time{r.rested, r.flooded.Add(-10 * time.Minute), r.flooded, r.waved} {
		replace, err := d.variables(r.store, at)
		require.NoError(t, err)
		for _, p := range d.Panels {
			if !strings.HasSuffix(p.Title, " of a peer") && !strings.HasSuffix(p.Title, " of a connection") {
				continue
			}
			drawn := make(map[bool]float64) // the most of limits, and of others
			for _, target := range p.Targets {
				found, err := r.ask(replace.Replace(target.Expr), at)
				require.NoError(t, err)
				for _, sample := range found {
					limit := strings.HasPrefix(target.LegendFormat, "limit")
					drawn[limit] = max(drawn[limit], sample.F)
				}
			}
			require.NotZero(t, drawn[false], p.Title)
			if limit, ok := drawn[true]; ok {
				checked++
				require.LessOrEqual(t, drawn[false], limit, p.Title)
			}
		}
	}
	require.Equal(t, 4*4, checked)
}

// Grafana ignores what it does not know, so a misspelt option goes unseen there.
func TestTheDashboardIsOneThatGrafanaKnows(t *testing.T) {
	known := cog.NewRuntime()
	known.RegisterPanelcfgVariant(stat.VariantConfig())
	known.RegisterPanelcfgVariant(timeseries.VariantConfig())
	known.RegisterPanelcfgVariant(bargauge.VariantConfig())
	known.RegisterPanelcfgVariant(table.VariantConfig())
	known.RegisterDataqueryVariant(grafanaprometheus.VariantConfig())
	text, err := os.ReadFile(dashboardFile)
	require.NoError(t, err)
	//lint:ignore SA1019 the model that every Grafana reads
	var d grafana.Dashboard
	for _, err := range []error{d.UnmarshalJSONStrict(text), d.Validate()} {
		if err != nil { // a list of errors, which may be empty
			require.Empty(t, err.Error())
		}
	}
}
