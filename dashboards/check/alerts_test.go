package check

import (
	"maps"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/stretchr/testify/require"
)

// rules returns the alerts by name, as Prometheus reads them.
func rules(t *testing.T) map[string]rulefmt.Rule {
	t.Helper()
	groups, errs := rulefmt.ParseFile(alertsFile, false, model.UTF8Validation, queries, nil)
	require.Empty(t, errs)
	all := make(map[string]rulefmt.Rule)
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			require.NotEmpty(t, r.Alert)
			require.NotContains(t, all, r.Alert)
			all[r.Alert] = r
		}
	}
	require.NotEmpty(t, all)
	return all
}

// firing returns the labels of those for which an alert fires at a moment: those for
// which its expression has been true at every evaluation for as long as it says.
func firing(t *testing.T, s *store, r rulefmt.Rule, at time.Time) []labels.Labels {
	t.Helper()
	var fire map[string]labels.Labels
	for back := time.Duration(0); back <= time.Duration(r.For); back += scrapeInterval {
		found, err := s.ask(r.Expr, at.Add(-back))
		require.NoError(t, err, r.Alert)
		now := make(map[string]labels.Labels)
		for _, sample := range found {
			key := sample.Metric.String()
			if _, before := fire[key]; before || fire == nil {
				now[key] = sample.Metric
			}
		}
		fire = now
	}
	return slices.Collect(maps.Values(fire))
}

func TestAlertsFireUnderAFloodAndAtNoOtherTime(t *testing.T) {
	r := record(t)
	for name, rule := range rules(t) {
		t.Run(name, func(t *testing.T) {
			for at := r.start; !at.After(r.rested); at = at.Add(scrapeInterval) {
				found, err := r.ask(rule.Expr, at)
				require.NoError(t, err)
				require.Empty(t, found, "at rest, after %v", at.Sub(r.start))
			}
			require.Empty(t, firing(t, r.store, rule, r.calmed), "after the flood")
			fired := firing(t, r.store, rule, r.flooded)
			if name == "RcmgrNoManager" {
				require.Empty(t, fired)
				fired = firing(t, r.store, rule, r.closed)
			} else {
				require.Empty(t, firing(t, r.store, rule, r.closed), "the manager is closed")
			}
			require.NotEmpty(t, fired, "does not fire")
			requireLabels(t, rule, fired)
		})
	}
}

// What is full now and then is worth a look; but who is refused then finds room a moment
// later, and nobody is to be woken because everybody was.
func TestAHostThatIsSometimesFullDoesNotFireTheAlertForRefusingEverybody(t *testing.T) {
	r, rules := record(t), rules(t)
	of := func(name string, at time.Time) (scopes []string) {
		for _, l := range firing(t, r.store, rules[name], at) {
			scopes = append(scopes, l.Get("scope")+" "+l.Get("resource"))
		}
		slices.Sort(scopes)
		return scopes
	}
	require.Contains(t, of("RcmgrHostRefusesEverybody", r.flooded), "system conns_inbound")
	for at := r.calmed; !at.After(r.waved); at = at.Add(scrapeInterval) {
		require.Empty(t, of("RcmgrHostRefusesEverybody", at), "after %v of waves", at.Sub(r.calmed))
	}
	require.Contains(t, of("RcmgrLimitNearlyFull", r.waved), "system conns_inbound")
	refused, err := r.ask(`sum(rate(libp2p_rcmgr_refusals_total{scope="system"}[5m]))`, r.waved)
	require.NoError(t, err)
	require.Greater(t, refused[0].F, 1.0, "many were refused")
}

var annotationLabel = regexp.MustCompile(`\$labels\.(\w+)`)

// requireLabels fails if the text of an alert names a label that none of its
// alerts has.
func requireLabels(t *testing.T, rule rulefmt.Rule, fired []labels.Labels) {
	t.Helper()
	require.Contains(t, []string{"info", "warning"}, rule.Labels["severity"])
	for _, key := range []string{"summary", "description"} {
		require.NotEmpty(t, rule.Annotations[key])
		for _, m := range annotationLabel.FindAllStringSubmatch(rule.Annotations[key], -1) {
			require.True(t, slices.ContainsFunc(fired, func(l labels.Labels) bool { return l.Has(m[1]) }), "no alert has %s", m[1])
		}
	}
}

// Each kind of refusal that there is makes some alert fire.
func TestNoKindOfRefusalIsWithoutAnAlert(t *testing.T) {
	r := record(t)
	found, err := r.ask("sum by (scope, cause) (increase(libp2p_rcmgr_refusals_total[20m]))", r.flooded)
	require.NoError(t, err)
	require.NotEmpty(t, found)
	for _, sample := range found {
		scope, cause := sample.Metric.Get("scope"), sample.Metric.Get("cause")
		switch cause {
		case "crowding":
			continue // keeps places free for newcomers, and so nobody out
		case "fair-share":
			continue // RcmgrSomebodyHasItsShare, whatever the scope
		}
		named := 0
		for _, rule := range rules(t) {
			for _, m := range regexp.MustCompile(`refusals_total\{scope=~"([^"]*)"`).FindAllStringSubmatch(rule.Expr, -1) {
				if regexp.MustCompile("^(?:" + m[1] + ")$").MatchString(scope) {
					named++
				}
			}
		}
		require.Equal(t, 1, named, "scope %s", scope)
	}
}
