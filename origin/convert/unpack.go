package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/grangemesh/grange/origin/content"
)

// unpack has qemu-img write the disk into a sparse working file.
func (o Options) unpack(ctx context.Context) (Disk, error) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		return nil, fmt.Errorf("%w: it needs qemu-img; install the package qemu-utils, or convert the file to raw or qcow2", errors.ErrUnsupported)
	}
	if err := o.refuseForeign(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", content.ErrInvalid, err)
	}
	f, err := os.CreateTemp(o.Temp, "unpack-*.raw")
	if err != nil {
		return nil, err
	}
	path := f.Name()
	o.Note("unpacking with qemu-img")
	err = errors.Join(f.Close(), run(ctx, "qemu-img", "convert", "-f", string(o.Format), "-O", "raw", "-S", "4k", "--", o.Path, path))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", content.ErrInvalid, err), os.Remove(path))
	}
	return openWorking(path)
}

// foreign is what qemu-img says of the other files that a disk is made of.
type foreign struct {
	Backing  string `json:"backing-filename"`
	Specific struct {
		Data struct {
			Extents []struct {
				File string `json:"filename"`
			} `json:"extents"`
		} `json:"data"`
	} `json:"format-specific"`
}

// refuseForeign keeps a disk from naming other files of the host, as a vmdk may:
// its parts must lie in the folder of the source.
func (o Options) refuseForeign(ctx context.Context) error {
	text, err := output(ctx, tool(ctx, "qemu-img", "info", "-U", "--output=json", "-f", string(o.Format), "--", o.Path))
	if err != nil {
		return err
	}
	var of foreign
	if err := json.Unmarshal(text, &of); err != nil {
		return fmt.Errorf("qemu-img info: %w", err)
	}
	if of.Backing != "" {
		return fmt.Errorf("it needs its backing file %q; flatten it with: qemu-img convert -f %s -O qcow2 OLD NEW", of.Backing, o.Format)
	}
	source, err := filepath.EvalSymlinks(o.Path)
	if err != nil {
		return err
	}
	for _, part := range of.Specific.Data.Extents {
		path, err := filepath.EvalSymlinks(part.File)
		if err != nil {
			return err
		}
		if path != source && filepath.Dir(path) != filepath.Dir(source) {
			return fmt.Errorf("a part of it, %q, lies outside of its folder; put the parts side by side", part.File)
		}
	}
	return nil
}
