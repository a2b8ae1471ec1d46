package garbage

import (
	"log/slog"
	"time"

	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	// ShareDefault is how much of the bytes at an origin one run deletes unasked.
	ShareDefault = 0.25
	// WasteDefault is how much of the bytes of all packs may be dead before some are written anew.
	WasteDefault = 0.10
)

// Config says what to collect, and how.
type Config struct {
	Source
	// Signer says in the catalog who collects.
	Signer trust.Signer
	// Grace is the time from a tombstone to the end; 0 is GraceDefault, less than GraceMin is content.ErrInvalid.
	Grace time.Duration
	// Share is how much of all bytes may be deleted or written anew at once, of 1; 0 is ShareDefault. What is more is
	// content.ErrConflict, and nothing is deleted, unless Yes.
	Share float64
	Yes   bool
	// Waste is the part of the bytes of packs that may be dead before some are written anew; 0 is WasteDefault, negative
	// is to write none anew.
	Waste float64
	// DryRun says what would be done, and writes nothing.
	DryRun bool
	// Progress is told how far it is, by one goroutine at a time; it must return at once. nil is nobody.
	Progress func(Progress)
	Log      *slog.Logger
}

// Progress is how far a run is.
type Progress struct {
	// Phase is what it is at: "records", "packs", "delete", "repack", "index".
	Phase string
	// Done of Total, 0 while that is unknown: objects.
	Done, Total int64
}

// Amount is how many objects of how many bytes.
type Amount struct {
	Objects int64 `json:"objects"`
	Bytes   int64 `json:"bytes"`
}

// Add counts one more object.
func (a *Amount) Add(bytes int64) { a.Objects, a.Bytes = a.Objects+1, a.Bytes+bytes }

// Totals are what a run has found, and done, in all. Times are by the store's clock.
type Totals struct {
	Epoch uint64    `json:"epoch" doc:"rises with each run that is not dry"`
	At    time.Time `json:"at" doc:"when it began, by the store's clock"`
	// Live is what records name, with what is dead in the same packs.
	Live Amount `json:"live"`
	// Marked got a tombstone, Deleted went, Repacked was written anew: its bytes are those won.
	Marked   Amount `json:"marked"`
	Deleted  Amount `json:"deleted"`
	Repacked Amount `json:"repacked"`
	// Going is what it deletes or writes anew, or a dry run would; Beyond says that this is more than the share, and waits.
	Going  Amount `json:"going"`
	Beyond bool   `json:"beyond" doc:"what goes is more than the share, and was left"`
	// Waiting has a tombstone, and goes after Next.
	Waiting Amount    `json:"waiting"`
	Next    time.Time `json:"next,omitzero"`
}

// Summary is what the collection's record says of the last run.
type Summary struct {
	Totals
	Broken int    `json:"broken"`
	Error  string `json:"error,omitempty"`
}

// Report is what a run tells whoever has asked for it.
type Report struct {
	Totals
	Dry bool `json:"dry" doc:"nothing was written"`
	// Rows say what there is, and what becomes of it.
	Rows []Row `json:"rows"`
	// Requests is how many the origin was sent.
	Requests int64 `json:"requests"`
	// Broken are records and manifests that could not be read; nothing that they may name was deleted.
	Broken []Broken `json:"broken"`
}

// Row is some objects of one sort.
type Row struct {
	// What is "pack", "stub", "segment", "index" or "upload".
	What  string `json:"what"`
	Scope string `json:"scope,omitempty" doc:"whose packs, or the volume whose segments"`
	Why   string `json:"why"`
	Then  string `json:"then" doc:"what becomes of them"`
	Amount
}

// Broken is what could not be read.
type Broken struct {
	Name  string `json:"name" doc:"as image:debian"`
	Error string `json:"error"`
	// Packs that are named and not there.
	Packs []pack.ID `json:"packs,omitempty"`
}
