package garbage

// disk is a volume of a process.
type disk struct{}

func (d *disk) close() error { return nil }

func (p *process) adopt() {}
