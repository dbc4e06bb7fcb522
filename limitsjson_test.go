package rcmgr

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/stretchr/testify/require"

	"github.com/weir-p2p/rcmgr/internal/strictjson"
)

// strictly returns the error of New with WithStrictConfig for a Limiter, or else err.
func strictly(l Limiter, err error) (Limiter, error) {
	if err == nil {
		_, err = newLimitBook(l, true, nil)
	}
	return l, err
}

// readers are all ways to read limits from a text strictly.
func readers() map[string]func(text string) (PartialLimitConfig, error) {
	ofLimiter := func(l Limiter, err error) (PartialLimitConfig, error) {
		if err != nil {
			return PartialLimitConfig{}, err
		}
		return l.(*fixedLimiter).ToPartialLimitConfig(), nil
	}
	return map[string]func(string) (PartialLimitConfig, error){
		"ReadLimits": func(text string) (PartialLimitConfig, error) { return ReadLimits(strings.NewReader(text)) },
		"NewLimiterFromJSON": func(text string) (PartialLimitConfig, error) {
			return ofLimiter(strictly(NewLimiterFromJSON(strings.NewReader(text), InfiniteLimits)))
		},
		"NewDefaultLimiterFromJSON": func(text string) (PartialLimitConfig, error) {
			return ofLimiter(strictly(NewDefaultLimiterFromJSON(strings.NewReader(text))))
		},
	}
}

func TestAFileThatAnEditorOnWindowsSavedIsReadAsItIs(t *testing.T) {
	marked, err := os.ReadFile("testdata/with-a-mark.json")
	require.NoError(t, err)
	require.True(t, bytes.HasPrefix(marked, []byte(strictjson.ByteOrderMark)) && bytes.Contains(marked, []byte("\r\n")))
	want := ResourceLimits{Memory: 1 << 30, ConnsInbound: 900}
	cfg, err := ReadLimitsFile("testdata/with-a-mark.json")
	require.NoError(t, err)
	require.Equal(t, PartialLimitConfig{System: want}, cfg)
	node, err := NodeLimits{MaxMemory: 4 << 30, MaxFileDescriptors: 100, OverridesFile: "testdata/with-a-mark.json"}.Build()
	require.NoError(t, err)
	require.Equal(t, 900, node.limits.System.ConnsInbound)
	for name, read := range readers() {
		cfg, err := read(string(marked))
		require.NoError(t, err, name)
		require.Equal(t, want.ConnsInbound, cfg.System.ConnsInbound, name)
		for text, want := range map[string]string{
			strictjson.ByteOrderMark + "{\r\n  \"Sytem\": {}\r\n}":          "limits: line 2, column 3: Sytem: unknown name",
			strictjson.ByteOrderMark + `{"Sytem":{}}`:                       "limits: line 1, column 2: Sytem: unknown name",
			strictjson.ByteOrderMark + "{\r\n\r\n  \"System\": {}} x":       "limits: line 3, column 17: top level: invalid character 'x' after top-level value",
			strictjson.ByteOrderMark:                                        "limits: line 1, column 1: top level: unexpected end of JSON input",
			strictjson.ByteOrderMark + strictjson.ByteOrderMark + "{}":      `limits: line 1, column 1: top level: unexpected character '\ufeff' (U+FEFF)`,
			"{}" + strictjson.ByteOrderMark:                                 `limits: line 1, column 3: top level: unexpected character '\ufeff' (U+FEFF)`,
			"{\n “System”: {}}":                                             "limits: line 2, column 2: top level: unexpected character '“' (U+201C)",
			`{"System":{}, "é`:                                              "limits: line 1, column 16: top level: unexpected end of JSON input",
			"{}\x00\x00":                                                    `limits: line 1, column 3: top level: invalid character '\x00' after top-level value`,
			"\x00\x00\x00\x00":                                              `limits: line 1, column 1: top level: invalid character '\x00' looking for beginning of value`,
			strictjson.ByteOrderMark + "{\"Service\":\r\n{\"caf\xe9\":{}}}": "limits: line 2, column 6: top level: expected UTF-8, found the byte 0xe9",
			"{\"Service\":{\"caf\xc3\":{\"Streams\":1}}} \xff\xfe\n":        "limits: line 1, column 17: top level: expected UTF-8, found the byte 0xc3",
		} {
			_, err := read(text)
			require.ErrorContains(t, err, want, "%s: %q", name, text)
		}
	}
}

// wide writes a text in units of two or four bytes.
func wide(text string, bytes int, bigEndian bool) string {
	var out []byte
	units := []rune(text)
	if bytes == 2 {
		units = units[:0]
		for _, u := range utf16.Encode([]rune(text)) {
			units = append(units, rune(u))
		}
	}
	for _, u := range units {
		for i := range bytes {
			if bigEndian {
				i = bytes - 1 - i
			}
			out = append(out, byte(u>>(8*i)))
		}
	}
	return string(out)
}

func TestAFileThatIsNotUTF8IsAnErrorThatSaysWhatToDo(t *testing.T) {
	const text = "{\n\"Service\": {\"\u00e9\U0001f600\": {}}}"
	for name, read := range readers() {
		for _, mark := range []string{"", "\ufeff"} {
			for _, blank := range []string{"", " ", "\r\n"} {
				for _, c := range []struct {
					bytes int
					big   bool
					want  string
				}{
					{2, false, "UTF-16, little endian"}, {2, true, "UTF-16, big endian"},
					{4, false, "UTF-32, little endian"}, {4, true, "UTF-32, big endian"},
				} {
					_, err := read(wide(mark+blank+text, c.bytes, c.big))
					require.ErrorContains(t, err, "limits: line 1, column 1: top level: the text is "+c.want+": save it as UTF-8", "%s %q", name, mark+blank)
				}
			}
		}
	}
	_, err := ReadLimitsFile(filepath.Join("testdata", "utf-16.json"))
	const want = "utf-16.json: line 1, column 1: top level: the text is UTF-16, little endian: save it as UTF-8"
	require.ErrorContains(t, err, want)
	_, err = NodeLimits{MaxMemory: 1 << 30, MaxFileDescriptors: 100, OverridesFile: filepath.Join("testdata", "utf-16.json")}.Build()
	require.ErrorContains(t, err, want)
}

func TestAllowlistTextMayHaveSpacesAndAByteOrderMark(t *testing.T) {
	for _, text := range []string{
		"/ip4/192.0.2.0/ipcidr/24\r", strictjson.ByteOrderMark + "/ip4/192.0.2.0/ipcidr/24", " /ip4/192.0.2.0/ipcidr/24\t", strictjson.ByteOrderMark + "\t/ip4/192.0.2.0/ipcidr/24\r\n",
		"/ip4/192.0.2.7/ipcidr/24", "/ip6/::ffff:192.0.2.7/ipcidr/120",
	} {
		e, err := parseAllowlistText(text)
		require.NoError(t, err, "%q", text)
		require.Equal(t, "192.0.2.0/24", e.network.String())
	}
	_, err := New(nil, WithAllowlistStrings([]string{strictjson.ByteOrderMark + "/ip4/192.0.2.1\r", "192.0.2.2\r"}, false))
	require.ErrorContains(t, err, `WithAllowlistStrings: line 2: allowlist entry "192.0.2.2": `)
	for _, bad := range []string{"", "\r", strictjson.ByteOrderMark, "/ip4/192.0.2.1\n/ip4/192.0.2.2", wide("/ip4/192.0.2.1", 2, false)} {
		_, err := parseAllowlistText(bad)
		require.Error(t, err, "%q", bad)
	}
}

func TestUpstreamReadsEverythingButCostsGatesAndRates(t *testing.T) {
	for path, want := range map[string]bool{
		"System.Streams": true, `Protocol["/a.Rates.b"].Streams`: true,
		"Costs.Conn": false, "Gates.Rate": false, "System.Rates.Streams": false, `Protocol["/a"].Rates.Streams.Burst`: false,
	} {
		require.Equal(t, want, readUpstream(path), "%s", path)
	}
}

// json.Unmarshal says which setting is no limit, as it does for go-libp2p's types, and for memory, too.
func TestUnmarshalNamesTheSettingThatIsNoLimit(t *testing.T) {
	fails := func(in string, cfg any, place string) {
		var wrong *json.UnmarshalTypeError
		require.ErrorAs(t, json.Unmarshal([]byte(in), cfg), &wrong)
		require.Equal(t, place, wrong.Field)
	}
	many := `{"PeerDefault": {"ConnsInbound": "many"}}`
	fails(many, &PartialLimitConfig{}, "PeerDefault.ConnsInbound")
	fails(many, &upstream.PartialLimitConfig{}, "PeerDefault.ConnsInbound")
	fails(`{"System": {"Streams": 1, "Memory": [4096]}}`, &PartialLimitConfig{}, "System.Memory")
}
