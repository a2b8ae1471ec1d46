package index

import (
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/grangemesh/grange/origin/content"
)

func cachePath(cfg Config) string {
	var names []string
	for _, s := range cfg.Scopes {
		names = append(names, s.String())
	}
	slices.Sort(names)
	sum := content.Sum([]byte(strings.Join(names, "\n")))
	return filepath.Join(cfg.Dir, "packs-"+hex.EncodeToString(sum[:8])+indexSuffix)
}

// readCacheFile reads the cache; one that is absent, or not kept, is fs.ErrNotExist.
func readCacheFile(cfg Config) (packs []Pack, sources []string, err error) {
	if cfg.Dir == "" {
		return nil, nil, fs.ErrNotExist
	}
	b, err := os.ReadFile(cachePath(cfg))
	if err != nil {
		return nil, nil, err
	}
	return decodeIndex(b)
}

// replaceCacheFile replaces the cache. It is not synced: a torn file is seen by its
// checksum and read anew.
func replaceCacheFile(cfg Config, packs []Pack, sources []string) error {
	b, err := encodeIndex(packs, sources)
	if err == nil {
		err = os.MkdirAll(cfg.Dir, 0o700)
	}
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(cfg.Dir, ".packs-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), cachePath(cfg))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
