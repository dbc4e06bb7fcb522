package strictjson

// Texts that are not JSON in UTF-8 are refused. encoding/json would replace bytes that are not
// UTF-8 by other characters, and so a value could end up under another name.

import (
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// ByteOrderMark is the character that some editors write before a text in UTF-8. It has no
// meaning there.
const ByteOrderMark = "\ufeff"

// unreadableBytes returns an error if a text is not UTF-8, and the offset of the first fault.
func unreadableBytes(text []byte) (at int, err error) {
	if is := wideEncoding(text); is != "" {
		return 0, fmt.Errorf("the text is %s: save it as UTF-8", is)
	}
	for rest := text; len(rest) > 0; {
		r, size := utf8.DecodeRune(rest)
		if r == utf8.RuneError && size == 1 {
			return len(text) - len(rest), &Passable{fmt.Errorf("expected UTF-8, found the byte %#x", rest[0]), "such bytes read as U+FFFD"}
		}
		rest = rest[size:]
	}
	return 0, nil
}

// unreadableJSON returns an error if a text is not one value in JSON, and the offset of the first
// fault.
func unreadableJSON(text []byte) (at int, err error) {
	var all json.RawMessage
	var syntax *json.SyntaxError
	if err := json.Unmarshal(text, &all); !errors.As(err, &syntax) {
		return 0, nil
	}
	at = int(syntax.Offset) - 1
	if at >= 0 && utf8.RuneStart(text[at]) && text[at] >= utf8.RuneSelf { // encoding/json names only the first byte
		r, _ := utf8.DecodeRune(text[at:])
		return at, fmt.Errorf("unexpected character %q (%U)", r, r)
	}
	for at > 0 && !utf8.RuneStart(text[at]) { // the text ends with this character
		at--
	}
	return at, syntax
}

// wideEncoding returns the name of the encoding of a text in UTF-16 or UTF-32, and "" for other
// texts. It goes by the byte-order mark, or by the zero bytes of the first characters, which are
// ASCII in JSON.
func wideEncoding(text []byte) string {
	var start [4]byte
	copy(start[:], text)
	zero := func(i int) bool { return start[i] == 0 }
	switch {
	case start == [4]byte{0xff, 0xfe, 0, 0}, !zero(0) && zero(1) && zero(2) && zero(3) && len(text) >= 4:
		return "UTF-32, little endian"
	case start == [4]byte{0, 0, 0xfe, 0xff}, zero(0) && zero(1) && zero(2) && !zero(3):
		return "UTF-32, big endian"
	case start[0] == 0xff && start[1] == 0xfe, !zero(0) && zero(1) && !zero(2) && zero(3) && len(text) >= 4:
		return "UTF-16, little endian"
	case start[0] == 0xfe && start[1] == 0xff, zero(0) && !zero(1):
		return "UTF-16, big endian"
	}
	return ""
}
