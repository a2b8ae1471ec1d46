package ublk

import "context"

// BeginRecovery is the first step of a recovery, without the others.
func BeginRecovery(ctx context.Context, number int) error {
	c, err := openControl()
	if err != nil {
		return err
	}
	defer c.file.Close()
	return c.startRecovery(ctx, uint32(number))
}
