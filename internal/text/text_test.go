package text

import (
	"math"
	"testing"
	"time"

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

func TestSettingsThatAreBytesHaveUnitsUnlessTheyWouldReadAlike(t *testing.T) {
	for _, c := range [][5]string{
		{"System.Memory", "67108864", "1073741824", "64.0 MiB", "1.0 GiB"},
		{"System.Memory", "1048576", "1048577", "1048576", "1048577"},
		{"Costs.Conn", "none", "65536", "none", "64.0 KiB"},
		{"System.Conns", "67108864", "unlimited", "67108864", "unlimited"},
	} {
		a, b := Settings(c[0], c[1], c[2])
		require.Equal(t, c[3:], []string{a, b}, c[0])
	}
}

func TestATextIsCutAroundTheLastSeparator(t *testing.T) {
	for _, c := range []struct {
		text, before, after string
		found               bool
	}{
		{`Protocol["/a.b"].Streams`, `Protocol["/a.b"]`, "Streams", true}, {"System", "System", "", false}, {".", "", "", true}, {"", "", "", false},
	} {
		before, after, found := CutLast(c.text, ".")
		require.Equal(t, c.before, before)
		require.Equal(t, c.after, after)
		require.Equal(t, c.found, found)
	}
	before, after, _ := CutLast("a--b---c", "--")
	require.Equal(t, []string{"a--b-", "c"}, []string{before, after})
}

func TestANounHasTheFormOfItsNumber(t *testing.T) {
	require.Equal(t, "0 hosts", Plural(0, "host"))
	require.Equal(t, "1 host", Plural(int64(1), "host"))
	require.Equal(t, "2 hosts", Plural(uint64(2), "host"))
	require.Equal(t, "1 entry", Plural(1, "entry", "entries"))
	require.Equal(t, "12 entries", Plural(12, "entry", "entries"))
	require.Equal(t, "looks", Noun(-1, "look"))
}

func TestATimeOfDaysIsInDays(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"0s": 0, "13m38s": 13*time.Minute + 38*time.Second, "23h59m59s": 24*time.Hour - time.Second, "1d0h0m": 24 * time.Hour,
		"20d0h16m": 480*time.Hour + 16*time.Minute + 29*time.Second, "2d5h1m": 53*time.Hour + 30*time.Second,
	} {
		require.Equal(t, want, Uptime(d))
	}
}
