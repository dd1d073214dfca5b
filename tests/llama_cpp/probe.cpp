// What llama.cpp makes of a GGUF file, for `tests/llama_cpp/`. Built against llama.cpp's static libraries:
//
//   L=.../llama.cpp; g++ -O1 -std=c++17 -fopenmp -I $L/include -I $L/ggml/include probe.cpp -o probe \
//     $L/build/src/libllama.a $L/build/ggml/src/libggml.a $L/build/ggml/src/libggml-cpu.a \
//     $L/build/ggml/src/libggml-base.a -lpthread -ldl
//
//   probe tokens FILE            texts on standard input, a byte 0 after each: a line of token ids for each
//   probe logits FILE ID ...     logits of every position as f32, on standard output
//   probe greedy FILE N ID ...   N ids of greedy decoding, a line
//   probe halves FILE C N        perplexity of the text on standard input: its first N windows of C tokens, the last half of
//                                each scored, as llama-perplexity does

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "llama.h"

static void quiet(ggml_log_level level, const char * text, void *) {
    if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static std::vector<llama_token> ids_of(const llama_vocab * vocab, const std::string & text) {
    std::vector<llama_token> ids(text.size() + 16);
    // What a tokenizer puts before a text is put there; special tokens in it are text.
    int n = llama_tokenize(vocab, text.data(), text.size(), ids.data(), ids.size(), true, false);
    if (n < 0) exit(1);
    ids.resize(n);
    return ids;
}

static std::string input() {
    return std::string((std::istreambuf_iterator<char>(std::cin)), {});
}

static int tokens(const llama_vocab * vocab) {
    std::string text;
    for (char byte : input()) {
        if (byte != 0) {
            text += byte;
            continue;
        }
        std::vector<llama_token> ids = ids_of(vocab, text);
        for (size_t i = 0; i < ids.size(); i++) printf(i ? " %d" : "%d", ids[i]);
        printf("\n");
        text.clear();
    }
    return 0;
}

static llama_context * context_of(llama_model * model, int positions, int batch) {
    auto cp = llama_context_default_params();
    cp.n_ctx = positions;
    cp.n_batch = cp.n_ubatch = batch;
    cp.type_k = cp.type_v = GGML_TYPE_F32;
    cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    cp.n_threads = cp.n_threads_batch = 2;
    llama_context * context = llama_init_from_model(model, cp);
    if (!context) exit(1);
    return context;
}

static void decode(llama_context * context, const llama_token * ids, int n, int first_with_logits) {
    llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; i++) {
        batch.token[i] = ids[i];
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = i >= first_with_logits;
    }
    if (llama_decode(context, batch)) exit(1);
    llama_batch_free(batch);
}

static int halves(llama_model * model, const llama_vocab * vocab, int c, int windows) {
    std::vector<llama_token> ids = ids_of(vocab, input());
    if ((int) ids.size() < c * windows) return 1;
    llama_context * context = context_of(model, c, c);
    int n_vocab = llama_vocab_n_tokens(vocab), count = 0;
    double nats = 0;
    for (int w = 0; w < windows; w++) {
        llama_token * window = ids.data() + w * c;
        llama_memory_clear(llama_get_memory(context), true);
        if (llama_vocab_get_add_bos(vocab)) window[0] = llama_vocab_bos(vocab);
        decode(context, window, c, c / 2);
        for (int i = c / 2; i < c - 1; i++, count++) {
            const float * logits = llama_get_logits_ith(context, i);
            float most = logits[0];
            for (int t = 1; t < n_vocab; t++) most = std::max(most, logits[t]);
            double sum = 0;
            for (int t = 0; t < n_vocab; t++) sum += exp(logits[t] - most);
            nats += most + log(sum) - logits[window[i + 1]];
        }
    }
    printf("%.6f\n", exp(nats / count));
    return 0;
}

int main(int argc, char ** argv) {
    if (argc < 3) return 2;
    llama_log_set(quiet, nullptr);
    llama_backend_init();
    std::string what = argv[1];
    auto params = llama_model_default_params();
    params.vocab_only = what == "tokens";
    llama_model * model = llama_model_load_from_file(argv[2], params);
    if (!model) return 1;
    const llama_vocab * vocab = llama_model_get_vocab(model);
    if (what == "tokens") return tokens(vocab);
    if (what == "halves") return argc == 5 ? halves(model, vocab, atoi(argv[3]), atoi(argv[4])) : 2;

    int first = what == "greedy" ? 4 : 3, more = what == "greedy" ? atoi(argv[3]) : 0;
    std::vector<llama_token> ids;
    for (int i = first; i < argc; i++) ids.push_back(atoi(argv[i]));
    llama_context * context = context_of(model, ids.size() + more + 8, ids.size());
    int n_vocab = llama_vocab_n_tokens(vocab);
    decode(context, ids.data(), ids.size(), what == "logits" ? 0 : ids.size() - 1);
    if (what == "logits") {
        for (size_t i = 0; i < ids.size(); i++) fwrite(llama_get_logits_ith(context, i), 4, n_vocab, stdout);
        return 0;
    }
    for (int i = 0; i < more; i++) {
        const float * logits = llama_get_logits_ith(context, -1);
        llama_token best = 0;
        for (int t = 1; t < n_vocab; t++) if (logits[t] > logits[best]) best = t;
        printf(i ? " %d" : "%d", best);
        if (llama_decode(context, llama_batch_get_one(&best, 1))) return 1;
    }
    printf("\n");
}
