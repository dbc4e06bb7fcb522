package text

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAmountsHaveTheLargestUnitThatFits(t *testing.T) {
	for want, n := range map[string]int64{
		"0": 0, "1023": 1023, "1.0 KiB": 1 << 10, "1.5 GiB": 3 << 29, "8.0 EiB": math.MaxInt64 - 1, "unlimited": math.MaxInt64,
	} {
		require.Equal(t, want, Bytes(n))
	}
	require.Equal(t, "2048", Count(2048))
	require.Equal(t, "unlimited", Count(math.MaxInt64))
}

func TestANameCannotControlATerminal(t *testing.T) {
	require.Equal(t, "/ipfs/ping/1.0.0", Printable("/ipfs/ping/1.0.0"))
	require.Equal(t, "protocol:/größe", Printable("protocol:/größe"))
	require.Equal(t, `"/\x1b[2J"`, Printable("/\x1b[2J"))
	require.Equal(t, `"/a\nb"`, Printable("/a\nb"))
	require.Equal(t, `"\xff"`, Printable("\xff"))
}

func TestAShortenedTextKeepsBothEnds(t *testing.T) {
	for _, c := range []struct {
		text string
		n    int
		want string
	}{
		{"system", 6, "system"}, {"transient", 6, "tra…nt"}, {"transient", 1, "…"}, {"transient", 2, "t…"},
		{"peer:12D3KooWabcdefghij", 16, "peer:12…cdefghij"}, {"protocol:/ä/ö/ü", 14, "protoco…/ä/ö/ü"},
	} {
		require.Equal(t, c.want, Shorten(c.text, c.n))
	}
}
