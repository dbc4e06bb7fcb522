package suggest_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/suggest"
)

// docs/suggest.md explains every word of a reason: each column of the table, each field of the JSON,
// each rule and each sureness.
func TestTheDocumentExplainsEveryWordOfAReason(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "docs", "suggest.md"))
	require.NoError(t, err)
	_, chapter, found := strings.Cut(string(text), "## What a reason says")
	require.True(t, found)
	chapter, _, _ = strings.Cut(chapter, "\n## ")
	for _, column := range suggest.Columns {
		require.Contains(t, chapter, "\n| `"+column+"` |")
	}
	fields := reflect.TypeFor[suggest.Reason]()
	for i := range fields.NumField() {
		if f := fields.Field(i); f.IsExported() {
			require.Contains(t, chapter, "`"+f.Name+"`")
		}
	}
	for _, rule := range []suggest.Rule{suggest.RuleMargin, suggest.RuleFloor, suggest.RuleHighWater, suggest.RuleSum, suggest.RuleReplay,
		suggest.RuleMachine, suggest.RuleOuter, suggest.RuleBurst} {
		require.Contains(t, chapter, "\n| `"+string(rule)+"` |")
	}
	for _, sure := range []suggest.Sure{suggest.SureLow, suggest.SureMedium, suggest.SureHigh} {
		require.Contains(t, chapter, "\n| `"+string(sure)+"` |")
	}
}
