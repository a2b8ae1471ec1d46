package ublk

import (
	"context"
	"errors"
)

// BeginRecovery is the first step of a recovery, without the others.
func BeginRecovery(ctx context.Context, number int) error {
	_, err := beginRecovery(ctx, number)
	return err
}

// BreakRecovery is the steps of a recovery up to the first request.
func BreakRecovery(ctx context.Context, number int) error {
	i, err := beginRecovery(ctx, number)
	if err != nil {
		return err
	}
	d := &Disk{id: i.id}
	return d.connect(ctx, newQueues(d, i))
}

func beginRecovery(ctx context.Context, number int) (info, error) {
	c, err := openControl()
	if err != nil {
		return info{}, err
	}
	i, err := c.info(uint32(number))
	if err == nil {
		err = c.startRecovery(ctx, i)
	}
	return i, errors.Join(err, c.close())
}
