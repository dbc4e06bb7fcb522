package bytesize

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseReturnsTheBytesOfANumberAndItsUnit(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "0B": 0, "0.0 kB": 0, "1": 1, "123 b": 123, "007": 7,
		"1k": 1e3, "1M": 1e6, "1G": 1e9, "1T": 1e12, "1P": 1e15, "1E": 1e18,
		"1kB": 1e3, "1MB": 1e6, "1GB": 1e9, "1TB": 1e12, "1PB": 1e15, "1EB": 1e18,
		"1Ki": 1 << 10, "1Mi": 1 << 20, "1Gi": 1 << 30, "1Ti": 1 << 40, "1Pi": 1 << 50, "1Ei": 1 << 60,
		"1KiB": 1 << 10, "1MiB": 1 << 20, "1GiB": 1 << 30, "1TiB": 1 << 40, "1PiB": 1 << 50, "1EiB": 1 << 60,
		"64 mib": 64 << 20, "64MIB": 64 << 20, "1.5GiB": 3 << 29, ".5KiB": 512, "2.KiB": 2048, "5\tMiB ": 5 << 20,
		"0.001 kB": 1, "1.9B": 1, "1.9": 1,
		"9223372036854775807": math.MaxInt64, "9007199254740993B": 1<<53 + 1, "7EiB": 7 << 60,
	} {
		got, err := Parse(text)
		require.NoError(t, err, "%q", text)
		require.Equal(t, want, got, "%q", text)
	}
}

func TestParseRefusesWhatIsNoNumberOfBytes(t *testing.T) {
	for _, text := range []string{
		"", " ", "B", "MiB", "a lot", "NaN", "Inf", "-1", "+1", " 1", "1MiBs", "1bb", "1i", "1ib", "1Bi", "1e3", "0x10", "1_000",
		"1.2.3", ".", ".B", "1,5GiB", "1,500 MB", "1 000", "١KiB", "1 M iB", "1\x00B", "\xff",
		"9223372036854775808", "8EiB", "16EiB", "10EB", "18446744073709551616", "99999999999999999999999", "8.0EiB", "9223372036854775807.5",
		"0.5B", "0.0009 kB", "0.1",
	} {
		_, err := Parse(text)
		require.Error(t, err, "%q", text)
	}
}
