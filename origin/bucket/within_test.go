package bucket

import "testing"

func TestWithin(t *testing.T) {
	for outer, want := range map[string]map[string]bool{
		"file:///srv/origin":      {"file:///srv/origin": true, "file:///srv/origin/": true, "file:///srv/origin/a/../b": true, "file:///srv/origin2": false, "file:///srv": false, "file:///srv/origin/../b": false},
		"s3://bucket/mesh?x=1":    {"s3://bucket/mesh/instances": true, "s3://bucket/mesh2": false, "s3://bucket": false, "s3://other/mesh": false, "file://bucket/mesh": false},
		"s3://bucket?endpoint=/a": {"s3://bucket/mesh?endpoint=/a": true, "s3://bucket/mesh?endpoint=/b": false},
	} {
		for url, is := range want {
			if Within(url, outer) != is {
				t.Errorf("%s in %s: %t", url, outer, !is)
			}
		}
	}
}
