package volumes

import (
	"context"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/garbage"
	"github.com/grangemesh/grange/simulations/soak"
)

// TestCollectionsTakeNothing: as TestPromisesAreKept, while the garbage of the origin is collected in between, behind its
// grace: what volumes, snapshots, orphans and forks are made of is there still, also what members have half done.
func TestCollectionsTakeNothing(t *testing.T) {
	setRapid(t, map[string]string{"rapid.checks": strconv.Itoa(soak.Of(4, 1000)), "rapid.steps": "60", "rapid.seed": soak.Of("15", "0")})
	gone := 0
	rapid.Check(t, func(r *rapid.T) {
		inBubble(t, func(t *testing.T) {
			f := newFarm(t)
			w := &model{book: newBook(f), steps: failpoints(t)}
			body, err := catalog.Image{Head: f.shelf.head}.Encode(content.NewCodec())
			if err == nil {
				_, err = f.catalog.Commit(context.Background(), catalog.Change{Kind: content.KindImage, Name: "debian", Body: body})
			}
			if err == nil {
				err = catalog.ClaimMesh(context.Background(), f.shelf.bucket, f.mesh.Mesh())
			}
			if err != nil {
				t.Fatal(err)
			}
			w.through(r, map[string]func(*rapid.T){"collect": w.collect, "collect again": w.collect})
			gone += w.deeds["collect"]
		})
	})
	t.Logf("%d objects were collected", gone)
}

// collect has all that is dead go.
func (w *model) collect(r *rapid.T) {
	for range 2 {
		report, err := garbage.Run(context.Background(), garbage.Config{
			Source: garbage.Source{Bucket: w.farm.shelf.bucket, Verifier: w.farm.mesh, Now: time.Now}, Signer: w.farm.signer, Yes: true, Waste: 0.01,
		})
		if err != nil || len(report.Broken) > 0 {
			w.fatal(r, "collect: %v, %+v", err, report.Broken)
		}
		w.note("collected: marked %d, deleted %d, repacked %d", report.Marked.Objects, report.Deleted.Objects, report.Repacked.Objects)
		w.deeds["collect"] += int(report.Deleted.Objects)
		<-time.After(garbage.GraceDefault + time.Hour)
	}
}
