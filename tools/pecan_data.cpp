/// pecan-data: text to tokenizer and token files, and facts about token files.

#include <cstdio>
#include <string>
#include <vector>

#include <fmt/ranges.h>

#include <pecan/core/error.hpp>

#include <pecan/config/config.hpp>

#include <pecan/data/blend.hpp>
#include <pecan/data/prepare.hpp>

#include "command_line.hpp"

namespace {

using pecan::data::DatasetInfo;

void print(const std::string& prefix, const DatasetInfo& info) {
  if (info.vocab_size == 0) {  // merged from sets that do not tell more
    fmt::print("{}: {} documents, {} tokens\n", prefix, info.documents, info.tokens);
    return;
  }
  fmt::print(
      "{}: {} documents, {} tokens, {} bytes of text ({:.2f} bytes a token), vocabulary {}\n",
      prefix,
      info.documents,
      info.tokens,
      info.bytes,
      static_cast<double>(info.bytes) / static_cast<double>(info.tokens),
      info.vocab_size);
}

/// Options that both ways of making a dataset have.
template <typename Options>
void add_text_options(CLI::App& command, Options& options, std::string& separator) {
  command.add_option("--input", options.inputs, "UTF-8 text files")->required()->type_name("FILE");
  command
      .add_option("--document-separator",
                  separator,
                  "blank-line, form-feed, or file (each file one document)")
      ->type_name("WORD")
      ->check(pecan::tools::one_of({"blank-line", "form-feed", "file"}))
      ->capture_default_str();
  command.add_option("--output", options.output, "prefix of the files to write")
      ->required()
      ->type_name("PREFIX");
}

pecan::tools::Manual manual() {
  using pecan::ExitCode;
  return {.name = "pecan-data",
          .version = {},
          .summary = "make and show the token files that pecan-train reads",
          .synopsis = {"pecan-data prepare --input FILE... --output PREFIX [options]",
                       "pecan-data tokenize --input FILE... --output PREFIX --tokenizer FILE",
                       "pecan-data samples --data-path PREFIX|WEIGHT PREFIX... --num-samples N",
                       "        [--split SHARES] [--which WORD] [--begin N] [--end N] [options]",
                       "pecan-data merge --input PREFIX... --output PREFIX",
                       "pecan-data inspect PREFIX [--tokenizer FILE]"},
          .description = {"Turns UTF-8 text into a SentencePiece tokenizer and into token files in "
                          "Megatron's format: PREFIX.bin holds the ids, PREFIX.idx where each "
                          "document lies. PREFIX.json says what they were made with.",
                          "Files that exist are never overwritten."},
          .exit_codes = {ExitCode::kDone, ExitCode::kUsage, ExitCode::kData, ExitCode::kInternal},
          .environment = {},
          .files = {{"PREFIX.bin, PREFIX.idx, PREFIX.json", "docs/formats/dataset.md"},
                    {"PREFIX.tokenizer.model", "the SentencePiece model that prepare trained"}},
          .examples = {{"A corpus whose documents blank lines separate",
                        "pecan-data prepare --input my.txt --output data/my --vocab-size 4096"},
                       {"More text with the same tokenizer",
                        "pecan-data tokenize --input more.txt --output data/more "
                        "--tokenizer data/my.tokenizer.model"}},
          .see_also = {"pecan-train(1)", "docs/formats/dataset.md"}};
}

struct SampleOptions {
  std::vector<std::string> data_path;
  std::string split;
  std::string which = "train";
  int seq_length = 256;
  std::int64_t num_samples = 0;
  std::uint64_t seed = 1234;
  std::int64_t begin = 0;
  std::int64_t end = 1;
};

void add_sample_options(CLI::App& command, SampleOptions& options) {
  command
      .add_option("--data-path",
                  options.data_path,
                  "dataset without extension; or a blend, weights and datasets in turn")
      ->required()
      ->type_name("PREFIX");
  command.add_option("--split", options.split, "shares like 99,1,0; empty: all is for training")
      ->type_name("SHARES");
  command.add_option("--which", options.which, "share to read")
      ->type_name("WORD")
      ->check(pecan::tools::one_of({"train", "valid", "test"}))
      ->capture_default_str();
  command.add_option("--seq-length", options.seq_length, "tokens of a sample")
      ->type_name("N")
      ->check(pecan::tools::at_least(1, "tokens"))
      ->capture_default_str();
  command
      .add_option("--num-samples",
                  options.num_samples,
                  "samples of the whole run, which the order depends on: train_iters x "
                  "global_batch_size")
      ->type_name("N")
      ->required();
  command.add_option("--seed", options.seed, "training.seed")
      ->type_name("N")
      ->capture_default_str();
  command.add_option("--begin", options.begin, "first sample to print")
      ->type_name("N")
      ->capture_default_str();
  command.add_option("--end", options.end, "sample after the last one")
      ->type_name("N")
      ->capture_default_str();
}

void print_samples(const SampleOptions& options) {
  // As data.data_path is read in a configuration.
  std::string list;
  for (const std::string& entry : options.data_path)
    list += fmt::format("{}\"{}\"", list.empty() ? "" : ", ", entry);
  const std::vector<std::string> settings{fmt::format(
      "data.data_path={}", options.data_path.size() == 1 ? list : fmt::format("[{}]", list))};
  const pecan::config::Config config = pecan::config::parse_config("", settings);
  const pecan::data::BlendedDataset dataset(config.data.data_path,
                                            options.split,
                                            pecan::data::split_from_name(options.which),
                                            options.seq_length,
                                            options.num_samples,
                                            options.seed,
                                            0);
  PECAN_VALIDATE(
      options.begin >= 0 && options.begin <= options.end && options.end <= dataset.num_samples(),
      pecan::ConfigError,
      "samples {} to {} are not among the {} that this order has; choose --begin and --end inside",
      options.begin,
      options.end,
      dataset.num_samples());
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(options.seq_length));
  std::vector<std::int32_t> labels(tokens.size());
  for (std::int64_t i = options.begin; i < options.end; ++i) {
    dataset.sample(i, tokens, labels);
    fmt::print("{{\"sample\": {}, \"tokens\": [{}], \"labels\": [{}]}}\n",
               i,
               fmt::join(tokens, ", "),
               fmt::join(labels, ", "));
  }
}

int run(int argc, char** argv) {
  pecan::tools::CommandLine line(manual());
  CLI::App& app = line.app();
  app.require_subcommand(1);
  std::string separator = "blank-line";

  pecan::data::PrepareOptions prepare;
  CLI::App& prepare_command =
      *app.add_subcommand("prepare",
                          "Trains a tokenizer and writes OUTPUT.tokenizer.model, OUTPUT_train and "
                          "OUTPUT_valid .bin/.idx/.json");
  add_text_options(prepare_command, prepare, separator);
  prepare_command
      .add_option("--vocab-size", prepare.vocab_size, "entries of the tokenizer to train")
      ->type_name("N")
      ->capture_default_str();
  prepare_command
      .add_option(
          "--held-out", prepare.held_out_percent, "percent of the documents, chosen by hash")
      ->type_name("PERCENT")
      ->capture_default_str();
  prepare_command
      .add_option(
          "--tokenizer", prepare.tokenizer, "use this SentencePiece model instead of training one")
      ->type_name("FILE");
  prepare_command
      .add_option("--tokenizer-train-bytes",
                  prepare.tokenizer_train_bytes,
                  "train the tokenizer on at most so much text")
      ->type_name("BYTES")
      ->capture_default_str();

  pecan::data::TokenizeOptions tokenize;
  CLI::App& tokenize_command = *app.add_subcommand(
      "tokenize", "Writes OUTPUT.bin, .idx and .json with an existing tokenizer");
  add_text_options(tokenize_command, tokenize, separator);
  tokenize_command.add_option("--tokenizer", tokenize.tokenizer, "SentencePiece model file")
      ->required()
      ->type_name("FILE");

  SampleOptions samples;
  CLI::App& samples_command = *app.add_subcommand(
      "samples", "Prints training samples in the order in which a run reads them, as JSON lines");
  add_sample_options(samples_command, samples);

  std::vector<std::string> merged;
  std::string merge_output;
  CLI::App& merge_command =
      *app.add_subcommand("merge", "Writes the documents of several datasets as one");
  merge_command.add_option("--input", merged, "paths of datasets without extension")
      ->required()
      ->type_name("PREFIX");
  merge_command.add_option("--output", merge_output, "prefix of the files to write")
      ->required()
      ->type_name("PREFIX");

  std::string prefix;
  std::string tokenizer;
  CLI::App& inspect_command =
      *app.add_subcommand("inspect",
                          "Prints facts about PREFIX, or about PREFIX_train and PREFIX_valid with "
                          "the unigram baseline, as JSON");
  inspect_command.add_option("PREFIX", prefix, "path without extension")
      ->required()
      ->type_name("PREFIX");
  inspect_command
      .add_option(
          "--tokenizer", tokenizer, "SentencePiece model to show the beginning of the text with")
      ->type_name("FILE");

  if (const std::optional<int> done = line.parse(argc, argv)) return *done;
  if (prepare_command.parsed()) {
    prepare.separator = pecan::data::document_separator_from_name(separator);
    const pecan::data::PrepareReport report = pecan::data::prepare(prepare);
    print(prepare.output + "_train", report.train);
    print(prepare.output + "_valid", report.valid);
  } else if (tokenize_command.parsed()) {
    tokenize.separator = pecan::data::document_separator_from_name(separator);
    print(tokenize.output, pecan::data::tokenize(tokenize));
  } else if (samples_command.parsed()) {
    print_samples(samples);
  } else if (merge_command.parsed()) {
    print(merge_output, pecan::data::merge(merged, merge_output));
  } else {
    fmt::print("{}", pecan::data::inspect(prefix, tokenizer));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return pecan::tools::run_program("pecan-data", [&] { return run(argc, argv); });
}
