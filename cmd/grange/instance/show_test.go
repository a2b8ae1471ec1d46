package instance

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/grangemesh/grange/node/api"
)

// TestShowSaysAll: who is told that an instance is run otherwise sees how it is run.
func TestShowSaysAll(t *testing.T) {
	var none bytes.Buffer
	table(&none, api.Instance{})
	for _, f := range reflect.VisibleFields(reflect.TypeOf(api.Instance{}.Spec)) {
		var v api.Instance
		switch field := reflect.ValueOf(&v.Spec).Elem().FieldByIndex(f.Index); field.Kind() {
		case reflect.String:
			field.SetString("none")
		case reflect.Bool:
			field.SetBool(true)
		case reflect.Slice:
			field.Set(reflect.ValueOf([]string{"some"}))
		case reflect.Float64:
			field.SetFloat(7)
		default:
			field.SetInt(7)
		}
		var out bytes.Buffer
		if table(&out, v); out.String() == none.String() {
			t.Errorf("%s is not shown", f.Name)
		}
	}
}
