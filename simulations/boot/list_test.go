package boot

import (
	"os"
	"path"
	"path/filepath"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// published is what a record says of an image.
type published struct{ catalog.Image }

// Root is what the image is.
func (p published) Root(tb testing.TB) content.CID {
	tb.Helper()
	root, err := p.Head.Root.Encode(content.NewCodec())
	if err != nil {
		tb.Fatal(err)
	}
	return root.CID()
}

// record reads an image's record as the store has it.
func (s *site) record(tb testing.TB, name string) published {
	tb.Helper()
	_, c, err := s.publisher.Credentials()
	var sealed []byte
	if err == nil {
		sealed, err = os.ReadFile(s.recordFile(tb, name))
	}
	if err != nil {
		tb.Fatal(err)
	}
	e, err := trust.NewVerifier(c.Mesh).Open(sealed, time.Now(), time.Now())
	if err != nil {
		tb.Fatal(err)
	}
	body, err := catalog.DecodeImage(content.NewCodec(), e.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return published{body}
}

// publish writes the record of a new name into the store, signed by the publisher, whatever it says.
func (s *site) publish(tb testing.TB, name string, body []byte) {
	tb.Helper()
	signer, _, err := s.publisher.Credentials()
	if err != nil {
		tb.Fatal(err)
	}
	sealed, err := signer.Seal(trust.Envelope{Kind: content.KindImage, Name: name, Version: 1, SignedAt: time.Now(), Commit: trust.NewCommit(), Body: body})
	if err == nil {
		err = os.WriteFile(s.recordFile(tb, name), sealed, 0o644)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// publishAs publishes an image under another name, with a list.
func (s *site) publishAs(tb testing.TB, name string, body catalog.Image, list *catalog.Boot) {
	tb.Helper()
	body.Boot = list
	b, err := body.Encode(content.NewCodec())
	if err != nil {
		tb.Fatal(err)
	}
	s.publish(tb, name, b)
}

// recordFile is where the store keeps the record of a name, which need not be there.
func (s *site) recordFile(tb testing.TB, name string) string {
	tb.Helper()
	there, err := s.store.Files(path.Join("records", string(content.KindImage.Space())))
	if err != nil || len(there) == 0 {
		tb.Fatalf("no record of an image in the store: %v", err)
	}
	return filepath.Join(filepath.Dir(there[0]), name)
}
