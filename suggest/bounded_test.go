package suggest

import (
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A source that never ends, such as a device, is not read for ever.
func TestASnapshotHasABound(t *testing.T) {
	text, err := io.ReadAll(&boundedReader{r: strings.NewReader("12345"), left: 5})
	require.NoError(t, err)
	require.Equal(t, "12345", string(text))
	_, err = io.ReadAll(&boundedReader{r: strings.NewReader("123456"), left: 5})
	require.EqualError(t, err, "it has more than 512 MiB, which no snapshot has")
}
