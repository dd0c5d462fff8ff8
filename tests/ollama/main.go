// Renders the TEMPLATE of a Modelfile as Ollama does (its template/template.go: text/template over System and Messages)
// and compares with chats that transformers has rendered.
//
// Usage: main MODELFILE CHATS.json     (tests/ollama/check calls it)
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

type chat struct {
	Messages []message
	Rendered string
}

func main() {
	modelfile := read(os.Args[1])
	var golden struct{ Chats []chat }
	must(json.Unmarshal([]byte(read(os.Args[2])), &golden))

	const quotes = `"""`
	_, rest, found := strings.Cut(modelfile, "\nTEMPLATE "+quotes)
	source, after, closed := strings.Cut(rest, quotes+"\n")
	if !found || !closed || !strings.Contains(after, `PARAMETER stop "<|im_end|>"`) {
		fmt.Println("FAIL  the Modelfile has no TEMPLATE in quotes, or does not stop at the end of a turn")
		os.Exit(1)
	}
	parsed, err := template.New("").Option("missingkey=zero").Parse(source)
	must(err)

	chats := golden.Chats
	// Of several turns, in ChatML as the model has it.
	turns := func(system string) chat {
		long := chat{Rendered: "<|im_start|>system\n" + system + "<|im_end|>\n"}
		for i, text := range []string{"One?", "Two.", "Three {{ .System }}?", "Four \"four\".", "Five?"} {
			role := [2]string{"user", "assistant"}[i%2]
			long.Messages = append(long.Messages, message{role, text})
			long.Rendered += "<|im_start|>" + role + "\n" + text + "<|im_end|>\n"
		}
		long.Rendered += "<|im_start|>assistant\n"
		return long
	}
	chats = append(chats, turns("You are a helpful AI assistant named SmolLM, trained by Hugging Face"))
	withSystem := turns("Be brief.")
	withSystem.Messages = append([]message{{"system", "Be brief."}}, withSystem.Messages...)
	chats = append(chats, withSystem)

	failed := 0
	for i, chat := range chats {
		var system []string
		for _, m := range chat.Messages {
			if m.Role == "system" {
				system = append(system, m.Content)
			}
		}
		var text strings.Builder
		values := map[string]any{"System": strings.Join(system, "\n\n"), "Messages": chat.Messages, "Response": ""}
		must(parsed.Execute(&text, values))
		if text.String() != chat.Rendered {
			fmt.Printf("FAIL  chat %d: Go %q, transformers %q\n", i, text.String(), chat.Rendered)
			failed++
			continue
		}
		fmt.Printf("ok    chat %d of %d messages\n", i, len(chat.Messages))
	}
	fmt.Printf("%d chats, %d failed\n", len(chats), failed)
	if failed > 0 {
		os.Exit(1)
	}
}

func read(path string) string {
	bytes, err := os.ReadFile(path)
	must(err)
	return string(bytes)
}

func must(err error) {
	if err != nil {
		fmt.Println("FAIL ", err)
		os.Exit(1)
	}
}
