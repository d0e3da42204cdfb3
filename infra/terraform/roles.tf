# What the roles may do is what `reben-cloud bucket policy` prints for builder and reader; a test keeps
# the two equal.

data "aws_iam_policy_document" "reader" {
  statement {
    sid       = "List"
    actions   = ["s3:GetBucketLocation", "s3:ListBucket"]
    resources = [aws_s3_bucket.roots.arn]
  }

  statement {
    sid       = "Objects"
    actions   = ["s3:GetObject"]
    resources = ["${aws_s3_bucket.roots.arn}/*"]
  }
}

data "aws_iam_policy_document" "builder" {
  statement {
    sid       = "List"
    actions   = ["s3:GetBucketLocation", "s3:ListBucket"]
    resources = [aws_s3_bucket.roots.arn]
  }

  statement {
    sid       = "Objects"
    actions   = ["s3:GetObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts", "s3:PutObject"]
    resources = ["${aws_s3_bucket.roots.arn}/*"]
  }
}

data "aws_iam_policy_document" "assume" {
  for_each = {
    builder = var.builder_principals
    trainer = var.trainer_principals
  }

  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "AWS"
      identifiers = each.value
    }
  }
}

resource "aws_iam_role" "builder" {
  count              = length(var.builder_principals) > 0 ? 1 : 0
  name               = "${var.bucket}-builder"
  assume_role_policy = data.aws_iam_policy_document.assume["builder"].json
  tags               = var.tags
}

resource "aws_iam_role_policy" "builder" {
  count  = length(aws_iam_role.builder)
  name   = "build"
  role   = aws_iam_role.builder[0].id
  policy = data.aws_iam_policy_document.builder.json
}

resource "aws_iam_role" "trainer" {
  count              = length(var.trainer_principals) > 0 ? 1 : 0
  name               = "${var.bucket}-trainer"
  assume_role_policy = data.aws_iam_policy_document.assume["trainer"].json
  tags               = var.tags
}

resource "aws_iam_role_policy" "trainer" {
  count  = length(aws_iam_role.trainer)
  name   = "read"
  role   = aws_iam_role.trainer[0].id
  policy = data.aws_iam_policy_document.reader.json
}
