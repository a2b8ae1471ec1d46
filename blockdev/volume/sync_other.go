//go:build !linux

package volume

import "os"

func dataSync(f *os.File) error { return f.Sync() }
