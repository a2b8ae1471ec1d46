package volume

import (
	"fmt"
	"os"
)

// lock: no volumes are served on Windows, where seeds run.
func lock(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	return f.Close, nil
}
