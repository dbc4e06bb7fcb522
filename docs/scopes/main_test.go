package main

import (
	"encoding/xml"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestThePicturesAreWhatTheCommandDraws(t *testing.T) {
	for theme := range themes {
		text, err := draw(theme)
		require.NoError(t, err)
		require.NoError(t, xml.Unmarshal(text, new(struct{})))
		there, err := os.ReadFile("../scopes-" + theme + ".svg")
		require.NoError(t, err)
		require.Equal(t, string(text), string(there), "run go run ./docs/scopes")
	}
}

func TestWrongCommandLinesAreErrors(t *testing.T) {
	for _, args := range [][]string{{"-to", ""}, {"-to", "no/such/directory"}, {"-none"}, {"docs"}} {
		_, err := directory(args)
		require.Error(t, err, args)
	}
	to, err := directory([]string{"-to", t.TempDir()})
	require.NoError(t, err)
	require.NotEmpty(t, to)
}
