/// pecan-data: text to tokenizer and token files, and facts about token files.

#include <cstdio>
#include <string>

#include <CLI/CLI.hpp>

#include <pecan/core/build_info.hpp>
#include <pecan/core/error.hpp>

#include <pecan/data/prepare.hpp>

namespace {

using pecan::data::DatasetInfo;

void print(const std::string& prefix, const DatasetInfo& info) {
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
  command.add_option("--input", options.inputs, "UTF-8 text files")->required();
  command
      .add_option("--document-separator",
                  separator,
                  "blank-line, form-feed, or file (each file one document)")
      ->capture_default_str();
  command.add_option("--output", options.output, "prefix of the files to write")->required();
}

int run(int argc, char** argv) {
  CLI::App app("Makes and shows the token files that pecan-train reads.", "pecan-data");
  app.set_version_flag("--version", pecan::build_info().version);
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
      ->capture_default_str();
  prepare_command
      .add_option(
          "--held-out", prepare.held_out_percent, "percent of the documents, chosen by hash")
      ->capture_default_str();
  prepare_command.add_option(
      "--tokenizer", prepare.tokenizer, "use this SentencePiece model instead of training one");
  prepare_command
      .add_option("--tokenizer-train-bytes",
                  prepare.tokenizer_train_bytes,
                  "train the tokenizer on at most so much text")
      ->capture_default_str();

  pecan::data::TokenizeOptions tokenize;
  CLI::App& tokenize_command = *app.add_subcommand(
      "tokenize", "Writes OUTPUT.bin, .idx and .json with an existing tokenizer");
  add_text_options(tokenize_command, tokenize, separator);
  tokenize_command.add_option("--tokenizer", tokenize.tokenizer, "SentencePiece model file")
      ->required();

  std::string prefix;
  std::string tokenizer;
  CLI::App& inspect_command =
      *app.add_subcommand("inspect",
                          "Prints facts about PREFIX, or about PREFIX_train and PREFIX_valid with "
                          "the unigram baseline, as JSON");
  inspect_command.add_option("prefix", prefix, "path without extension")->required();
  inspect_command.add_option(
      "--tokenizer", tokenizer, "SentencePiece model to show the beginning of the text with");

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : static_cast<int>(pecan::ExitCode::kUsage);
  }
  if (prepare_command.parsed()) {
    prepare.separator = pecan::data::document_separator_from_name(separator);
    const pecan::data::PrepareReport report = pecan::data::prepare(prepare);
    print(prepare.output + "_train", report.train);
    print(prepare.output + "_valid", report.valid);
  } else if (tokenize_command.parsed()) {
    tokenize.separator = pecan::data::document_separator_from_name(separator);
    print(tokenize.output, pecan::data::tokenize(tokenize));
  } else {
    fmt::print("{}", pecan::data::inspect(prefix, tokenizer));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const pecan::Error& e) {
    fmt::print(stderr, "pecan-data: {}\n", e.what());
    return static_cast<int>(e.exit_code());
  } catch (const std::exception& e) {
    fmt::print(stderr, "pecan-data: internal error: {}\n", e.what());
    return static_cast<int>(pecan::ExitCode::kInternal);
  }
}
