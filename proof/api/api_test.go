package main

import (
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNowHasWhatProgramsCanName(t *testing.T) {
	t.Chdir("../..")
	now, err := declarations(".")
	require.NoError(t, err)
	for _, line := range []string{
		"rcmgr: func New(limits rcmgr.Limiter, opts ...rcmgr.Option) (*rcmgr.Manager, error)",
		"rcmgr: method (*Manager).Stat() rcmgr.ResourceManagerStat",
		"rcmgr: method Handle.Stat() rcmgr.ResourceManagerStat", // promoted
		"rcmgr: field BaseLimit.Streams int",
		"rcmgr: method Limiter.GetSystemLimits() rcmgr.Limit",
		"obs: type StatsTraceReporter = rcmgr.StatsTraceReporter",
	} {
		require.True(t, slices.Contains(now, line), line)
	}
	written, err := readLines(nowFile)
	require.NoError(t, err)
	require.Empty(t, missing(now, written), "not in %s: go run ./proof/api -write", nowFile)
	require.Empty(t, missing(written, now), "no longer there: go run ./proof/api -write")
}

func TestNothingOfTheLastReleaseIsGoneUnsaid(t *testing.T) {
	t.Chdir("../..")
	now, err := readLines(nowFile)
	require.NoError(t, err)
	released, err := readLines(releasedFile)
	require.NoError(t, err)
	require.NotEmpty(t, released)
	changes, err := os.ReadFile(changelog)
	require.NoError(t, err)
	require.Empty(t, unexplained(released, now, string(changes)),
		"gone or different since the last release, and not named under \"### Breaking\" at the top of %s", changelog)
}

func TestWhatIsGoneMustBeNamedAsBreaking(t *testing.T) {
	released := []string{
		"rcmgr: func New(limits rcmgr.Limiter) (*rcmgr.Manager, error)",
		"rcmgr: method (*Manager).Close() error",
		"rcmgr: field Snapshot.At time.Time",
		"obs: type Option = rcmgr.Option",
	}
	now := slices.Concat(released[2:], []string{"rcmgr: func New(limits rcmgr.Limiter, opts ...rcmgr.Option) (*rcmgr.Manager, error)"})
	const older = "\n## v0.1.0\n\n### Breaking\n\n- `rcmgr.New` and `rcmgr.Manager.Close`\n"
	for _, c := range []struct {
		changes string
		left    []string
	}{
		{"# Changelog\n\n## Unreleased\n\n### Added\n\n- `rcmgr.New`" + older, released[:2]},
		{"# Changelog\n\n## Unreleased\n\n### Breaking\n\n- `rcmgr.New` takes options.\n\n### Added\n\n- `rcmgr.Manager.Close`" + older, released[1:2]},
		{"# Changelog\n\n## Unreleased\n\n### Breaking\n\n- `rcmgr.Manager.Close` is gone, `rcmgr.New` takes options.\n" + older, []string{}},
	} {
		require.Equal(t, c.left, unexplained(released, now, c.changes), c.changes)
	}
	require.Equal(t, []string{}, unexplained(released, released, "# Changelog\n"))
}

func TestTheCommandLineIsChecked(t *testing.T) {
	_, err := chosen([]string{"-release", "1.0"})
	require.EqualError(t, err, `invalid value "1.0" for flag -release: expected a version such as v0.2.0`)
	s, err := chosen([]string{"-release", "v1.2.3"})
	require.NoError(t, err)
	require.Equal(t, settings{release: "v1.2.3"}, s)
}
